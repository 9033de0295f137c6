//! What can still be restored of a damaged image.

use blockio::Extent;

use super::Report;
use super::visit::{Seen, visit};
use super::{PIECES_MAX, check};
use crate::error::{Kind, RepoError, Result};
use crate::id::ContentId;
use crate::object::TableBuilder;
use crate::repository::{Image, Repository};
use crate::snapshot::Snapshot;
use blockio::Cancel;

/// An image with holes.
#[derive(Clone, Debug)]
pub struct Salvage {
    /// The image. The pieces of what is lost name the content of zeros, whatever their length; they are not to be fetched.
    pub image: Image,
    /// What is lost, in order, merged; none of it past the end of the volume.
    pub lost: Vec<Extent>,
}

impl Salvage {
    /// Whether any byte of `extent` is lost.
    pub fn is_lost(&self, extent: Extent) -> bool {
        let next = self.lost.partition_point(|lost| lost.end() <= extent.offset);
        self.lost.get(next).is_some_and(|lost| lost.offset < extent.end())
    }
}

/// Turns the image in `snapshot` and the `report` of its verification into what can be restored. Lists that cannot be
/// read are passed over as far as what is left of them tells what is where.
///
/// # Errors
/// `Corrupt` when the folder of the image cannot be read: nothing tells what it was; `InvalidInput` when the snapshot is
/// no image.
pub fn salvage(repository: &Repository, snapshot: &Snapshot, report: &Report, cancel: &Cancel) -> Result<Salvage> {
    let entry = repository.image_entry(snapshot)?;
    let tagged = snapshot.tagged_size()?;
    let mut pieces: Vec<(Extent, ContentId, bool)> = Vec::new();
    visit(repository, &entry.object, 0, None, 0, &mut |seen| {
        check(cancel)?;
        if let Seen::Piece { extent, content, exact } = seen {
            let fits = |len| !exact || u64::from(len) == extent.len;
            if repository
                .lookup(&content)
                .is_some_and(|known| fits(known.original_len))
                && !extent.is_empty()
            {
                pieces.push((extent, content, exact));
            }
            if pieces.len() as u64 > PIECES_MAX {
                let what = format!("object {} goes past {PIECES_MAX} pieces", entry.object);
                return Err(RepoError::corrupt(what));
            }
        }
        Ok(())
    })?;
    // A list that is broken may have been read twice.
    pieces.sort_by_key(|(extent, ..)| extent.offset);
    let ids = snapshot.id.into_iter();
    let known = ids.flat_map(|id| report.lost(id));
    let known: Vec<Extent> = known.filter(|extent| !extent.is_empty()).collect();
    let is_known = |extent: &Extent| {
        let next = known.partition_point(|lost| lost.end() <= extent.offset);
        known.get(next).is_some_and(|lost| lost.offset < extent.end())
    };
    let covered = pieces.last().map_or(0, |(extent, ..)| extent.end());
    let len = covered.max(entry.size).max(tagged.unwrap_or(0));
    let size = tagged.unwrap_or(len);
    let zero = repository.zero_content();
    let (mut builder, mut lost) = (TableBuilder::new(repository.contents().hash_len()), Vec::new());
    let lose = |builder: &mut TableBuilder, lost: &mut Vec<Extent>, mut gap: Extent| -> Result<()> {
        lost.push(gap);
        // Chunks of zeros as in a whole image; what is left over is a piece of its own length.
        while !gap.is_empty() {
            let part = gap.len.min(blockio::CHUNK_SIZE - gap.offset % blockio::CHUNK_SIZE);
            builder.push(part, &zero)?;
            gap = Extent::between(gap.offset + part, gap.end());
        }
        Ok(())
    };
    for (extent, content, exact) in pieces {
        if extent.offset < builder.len() {
            continue;
        }
        let gap = Extent::between(builder.len(), extent.offset);
        if !gap.is_empty() {
            lose(&mut builder, &mut lost, gap)?;
        }
        match (is_known(&extent), exact) {
            (true, _) => lose(&mut builder, &mut lost, extent)?,
            (false, true) => builder.push(extent.len, &content)?,
            (false, false) => builder.push_compressed(extent.len, &content)?,
        }
    }
    let tail = Extent::between(builder.len(), len);
    if !tail.is_empty() {
        lose(&mut builder, &mut lost, tail)?;
    }
    lost.iter_mut()
        .for_each(|extent| *extent = Extent::between(extent.offset, extent.end().min(size)));
    lost.retain(|extent| !extent.is_empty());
    lost.dedup_by(|next, last| {
        let touches = next.offset == last.end();
        last.len += if touches { next.len } else { 0 };
        touches
    });
    if size > len {
        let what = format!("a volume of {size} bytes in an object of {len} bytes");
        return Err(RepoError::new(Kind::Corrupt, what));
    }
    Ok(Salvage {
        image: Image {
            snapshot: snapshot.clone(),
            object: entry.object,
            table: builder.finish(),
            list: None,
            size,
        },
        lost,
    })
}
