// Command maker writes a repository with block images as Velero's block uploader lays them out, by Kopia's own library:
// every 1 MiB block an object of its own, a list of them with prefix x in pieces of 128 KiB, a folder with one file, and a
// snapshot manifest with Velero's tags. It shares no code with blockferry, and prints what a reader must find.
//
// Usage: maker FOLDER, which must not exist. See ../recipe.md.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob/filesystem"
	"github.com/kopia/kopia/repo/compression"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
)

const (
	password  = "golden-passw0rd"
	blockSize = 1 << 20
	requester = "snapshot-data-upload-download"
	uploader  = "velero-block"
)

// A volume: its exact size, and the blocks with data. All others are zero.
type volume struct {
	pvc    string
	size   int64
	blocks map[int64][]byte
}

// noise returns n bytes that cannot be compressed, the same on every run: SHA-256 of seed and counter, again and again.
func noise(seed uint64, n int) []byte {
	out := make([]byte, 0, n+sha256.Size)
	for counter := uint64(0); len(out) < n; counter++ {
		var in [16]byte
		binary.LittleEndian.PutUint64(in[:8], seed)
		binary.LittleEndian.PutUint64(in[8:], counter)
		sum := sha256.Sum256(in[:])
		out = append(out, sum[:]...)
	}
	return out[:n]
}

func writeObject(ctx context.Context, w repo.RepositoryWriter, o object.WriterOptions, data []byte) (object.ID, error) {
	writer := w.NewObjectWriter(ctx, o)
	defer writer.Close()
	if _, err := writer.Write(data); err != nil {
		return object.EmptyID, err
	}
	return writer.Result()
}

func (v volume) save(ctx context.Context, w repo.RepositoryWriter, start time.Time) (map[string]any, error) {
	plain := object.WriterOptions{Splitter: "FIXED-1M"}
	zero, err := writeObject(ctx, w, plain, make([]byte, blockSize))
	if err != nil {
		return nil, err
	}
	count := (v.size + blockSize - 1) / blockSize
	list := struct {
		Stream  string                       `json:"stream"`
		Entries []object.IndirectObjectEntry `json:"entries"`
	}{Stream: "kopia:indirect"}
	sum := sha256.New()
	for i := int64(0); i < count; i++ {
		id, block := zero, make([]byte, blockSize)
		if data, ok := v.blocks[i]; ok {
			copy(block, data)
			if id, err = writeObject(ctx, w, plain, block); err != nil {
				return nil, err
			}
		}
		sum.Write(block[:min(blockSize, v.size-i*blockSize)])
		list.Entries = append(list.Entries, object.IndirectObjectEntry{Start: i * blockSize, Length: blockSize, Object: id})
	}
	// As Kopia encodes its own lists: with a line break at the end.
	var text bytes.Buffer
	if err := json.NewEncoder(&text).Encode(list); err != nil {
		return nil, err
	}
	index, err := writeObject(ctx, w, object.WriterOptions{
		Prefix: content.IDPrefix("x"), Splitter: "FIXED-128K", Compressor: compression.Name("zstd-fastest"),
	}, text.Bytes())
	if err != nil {
		return nil, err
	}
	image, err := object.ParseID("I" + index.String())
	if err != nil {
		return nil, err
	}

	source := snapshot.SourceInfo{
		Host: "default", UserName: "default",
		Path: strings.Join([]string{requester, uploader, "ns1", v.pvc}, "/"),
	}
	aligned := count * blockSize
	folder, err := json.Marshal(snapshot.DirManifest{
		StreamType: "kopia:directory",
		Entries: []*snapshot.DirEntry{{
			Name: strings.ReplaceAll(source.Path, "/", "-"), Type: snapshot.EntryTypeFile, Permissions: 0o777,
			FileSize: aligned, ObjectID: image,
		}},
	})
	if err != nil {
		return nil, err
	}
	root, err := writeObject(ctx, w, object.WriterOptions{
		Prefix: "k", Compressor: "zstd-fastest", MetadataCompressor: "zstd-fastest",
	}, folder)
	if err != nil {
		return nil, err
	}
	id, err := snapshot.SaveSnapshot(ctx, w, &snapshot.Manifest{
		Source: source, Description: "Block Uploader",
		StartTime: fs.UTCTimestampFromTime(start), EndTime: fs.UTCTimestampFromTime(start.Add(time.Minute)),
		Stats: snapshot.Stats{TotalFileSize: aligned},
		RootEntry: &snapshot.DirEntry{
			Type: snapshot.EntryTypeDirectory, Permissions: 0o777, ObjectID: root,
			DirSummary: &fs.DirectorySummary{TotalFileSize: aligned},
		},
		Tags: map[string]string{
			"snapshot-requester": requester, "snapshot-uploader": uploader,
			"velero.io/async-operation-id": "operation-" + v.pvc, "bdev-source-size": strconv.FormatInt(v.size, 10),
			"cbt-change-id": "change-" + v.pvc, "cbt-volume-id": "volume-" + v.pvc,
		},
		Pins: []string{"velero-pin"},
	})
	return map[string]any{
		"id": id, "source": source.String(), "size": v.size, "object": image.String(),
		"sha256": fmt.Sprintf("%x", sum.Sum(nil)),
	}, err
}

func run(ctx context.Context, path string, out io.Writer) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	storage, err := filesystem.New(ctx, &filesystem.Options{Path: path}, true)
	if err != nil {
		return err
	}
	if err := repo.Initialize(ctx, storage, &repo.NewRepositoryOptions{}, password); err != nil {
		return err
	}
	home, err := os.MkdirTemp("", "maker")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	config := filepath.Join(home, "config")
	if err := repo.Connect(ctx, config, storage, password, nil); err != nil {
		return err
	}
	r, err := repo.Open(ctx, config, password, nil)
	if err != nil {
		return err
	}
	defer r.Close(ctx)

	// The smaller ends within a block and has a block twice; the list of the larger is longer than 128 KiB, so it has a list itself.
	block := noise(1, blockSize)
	volumes := []volume{
		{"small", 7*blockSize + 512, map[int64][]byte{0: block, 3: block, 7: noise(2, 512)}},
		{"large", 2000 * blockSize, map[int64][]byte{5: block, 1999: noise(2, 512)}},
	}
	start := time.Date(2026, 1, 2, 3, 4, 5, 123456789, time.UTC)
	var found []any
	err = repo.WriteSession(ctx, r, repo.WriteSessionOptions{Purpose: "maker"}, func(ctx context.Context, w repo.RepositoryWriter) error {
		for _, v := range volumes {
			saved, err := v.save(ctx, w, start)
			if err != nil {
				return err
			}
			found = append(found, saved)
		}
		return nil
	})
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(map[string]any{"password": password, "snapshots": found})
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: maker FOLDER")
	}
	if err := run(context.Background(), os.Args[1], os.Stdout); err != nil {
		log.Fatal(err)
	}
}
