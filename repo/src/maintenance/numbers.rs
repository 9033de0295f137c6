//! The numbers of a task's run, in the form in which Kopia's `maintenance info` prints them.
//!
//! Source of kinds and fields: kopia, repo/maintenancestats.

use serde::Serialize;

use super::collect::{CollectTotals, Count};
use super::deletion::Deleted;
use super::forget::ForgetTotals;
use super::journal::extra;
use super::logs::LogTotals;
use super::moves::{MoveTotals, Moved};
use super::packs::PackTotals;
use crate::format::RunExtra;
use crate::time::Time;

/// Kind under which the history tells which blobs went and why. Kopia passes over kinds that it does not know.
const DELETED_KIND: &str = "blockferryDeletedBlobs";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotGc {
    unreferenced_content_count: u64,
    unreferenced_content_size: u64,
    deleted_content_count: u64,
    deleted_content_size: u64,
    unreferenced_recent_content_count: u64,
    unreferenced_recent_content_size: u64,
    in_use_content_count: u64,
    in_use_content_size: u64,
    in_use_system_content_count: u64,
    in_use_system_content_size: u64,
    recovered_content_count: u64,
    recovered_content_size: u64,
}

pub(super) fn collected(t: &CollectTotals) -> Vec<RunExtra> {
    let numbers = SnapshotGc {
        unreferenced_content_count: t.to_delete.count + t.deleted_before.count,
        unreferenced_content_size: t.to_delete.bytes + t.deleted_before.bytes,
        deleted_content_count: t.to_delete.count,
        deleted_content_size: t.to_delete.bytes,
        unreferenced_recent_content_count: t.too_young.count,
        unreferenced_recent_content_size: t.too_young.bytes,
        in_use_content_count: t.in_use.count + t.to_restore.count,
        in_use_content_size: t.in_use.bytes + t.to_restore.bytes,
        in_use_system_content_count: t.system.count,
        in_use_system_content_size: t.system.bytes,
        recovered_content_count: t.to_restore.count,
        recovered_content_size: t.to_restore.bytes,
    };
    vec![extra("snapshotGCStats", &numbers)]
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RewriteContents {
    to_rewrite_content_count: u64,
    to_rewrite_content_size: u64,
    rewritten_content_count: u64,
    rewritten_content_size: u64,
    retained_content_count: u64,
    retained_content_size: u64,
}

pub(super) fn moved(t: &MoveTotals, moved: &Moved) -> Vec<RunExtra> {
    let numbers = RewriteContents {
        to_rewrite_content_count: t.to_move.count,
        to_rewrite_content_size: t.to_move.bytes,
        rewritten_content_count: moved.done.count,
        rewritten_content_size: moved.done.bytes,
        retained_content_count: t.too_young + moved.damaged,
        retained_content_size: 0,
    };
    vec![extra("rewriteContentsStats", &numbers)]
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CompactIndexes {
    dropped_contents_deleted_before: Time,
}

pub(super) fn forgotten(t: &ForgetTotals) -> Vec<RunExtra> {
    let numbers = t.up_to.map(|up_to| CompactIndexes {
        dropped_contents_deleted_before: up_to,
    });
    numbers.iter().map(|n| extra("compactIndexesStats", n)).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeletePacks {
    unreferenced_pack_count: u64,
    unreferenced_total_size: u64,
    deleted_pack_count: u64,
    deleted_total_size: u64,
    retained_pack_count: u64,
    retained_total_size: u64,
}

pub(super) fn packs_deleted(t: &PackTotals, deleted: &Deleted) -> Vec<RunExtra> {
    let kept = t.kept.values().fold(Count::default(), |sum, kept| Count {
        count: sum.count + kept.blobs.count,
        bytes: sum.bytes + kept.blobs.bytes,
    });
    let numbers = DeletePacks {
        unreferenced_pack_count: t.to_delete.count,
        unreferenced_total_size: t.to_delete.bytes,
        deleted_pack_count: deleted.totals.count,
        deleted_total_size: deleted.totals.bytes,
        retained_pack_count: kept.count,
        retained_total_size: kept.bytes,
    };
    with_names(extra("deleteUnreferencedPacksStats", &numbers), deleted)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CleanupLogs {
    to_delete_blob_count: u64,
    to_delete_blob_size: u64,
    deleted_blob_count: u64,
    deleted_blob_size: u64,
    retained_blob_count: u64,
    retained_blob_size: u64,
}

pub(super) fn logs_deleted(t: &LogTotals, deleted: &Deleted) -> Vec<RunExtra> {
    let numbers = CleanupLogs {
        to_delete_blob_count: t.to_delete.count,
        to_delete_blob_size: t.to_delete.bytes,
        deleted_blob_count: deleted.totals.count,
        deleted_blob_size: deleted.totals.bytes,
        retained_blob_count: t.retained.count,
        retained_blob_size: t.retained.bytes,
    };
    with_names(extra("cleanupLogsStats", &numbers), deleted)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CompactSingle {
    superseded_index_blob_count: u64,
    superseded_index_total_size: u64,
    epoch: u64,
}

pub(super) fn epoch_compacted(epoch: u64, blobs: Count) -> Vec<RunExtra> {
    let numbers = CompactSingle {
        superseded_index_blob_count: blobs.count,
        superseded_index_total_size: blobs.bytes,
        epoch,
    };
    vec![extra("compactSingleEpochStats", &numbers)]
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AdvanceEpoch {
    current_epoch: u64,
    was_advanced: bool,
}

pub(super) fn epoch_advanced(current_epoch: u64, was_advanced: bool) -> Vec<RunExtra> {
    vec![extra(
        "advanceEpochStats",
        &AdvanceEpoch {
            current_epoch,
            was_advanced,
        },
    )]
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GenerateRange {
    range_min_epoch: u64,
    range_max_epoch: u64,
}

pub(super) fn range_generated(range_min_epoch: u64, range_max_epoch: u64) -> Vec<RunExtra> {
    vec![extra(
        "generateRangeCheckpointStats",
        &GenerateRange {
            range_min_epoch,
            range_max_epoch,
        },
    )]
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CleanupMarkers {
    deleted_epoch_marker_blob_count: u64,
    deleted_watermark_blob_count: u64,
}

pub(super) fn markers_deleted(markers: u64, watermarks: u64, deleted: &Deleted) -> Vec<RunExtra> {
    let numbers = CleanupMarkers {
        deleted_epoch_marker_blob_count: markers,
        deleted_watermark_blob_count: watermarks,
    };
    with_names(extra("cleanupMarkersStats", &numbers), deleted)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CleanupSuperseded {
    max_replacement_time: Time,
    deleted_blob_count: u64,
    deleted_total_size: u64,
}

pub(super) fn superseded_deleted(max_replacement_time: Time, deleted: &Deleted) -> Vec<RunExtra> {
    let numbers = CleanupSuperseded {
        max_replacement_time,
        deleted_blob_count: deleted.totals.count,
        deleted_total_size: deleted.totals.bytes,
    };
    with_names(extra("cleanupSupersededIndexesStats", &numbers), deleted)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExtendRetention {
    to_extend_blob_count: u64,
    extended_blob_count: u64,
    retention_period: String,
}

pub(super) fn locks_extended(to_extend: u64, extended: u64, period: std::time::Duration) -> Vec<RunExtra> {
    let numbers = ExtendRetention {
        to_extend_blob_count: to_extend,
        extended_blob_count: extended,
        retention_period: format!(
            "{}h{}m{}s",
            period.as_secs() / 3600,
            period.as_secs() / 60 % 60,
            period.as_secs() % 60
        ),
    };
    vec![extra("extendBlobRetentionStats", &numbers)]
}

fn with_names(numbers: RunExtra, deleted: &Deleted) -> Vec<RunExtra> {
    let names = (!deleted.named.is_empty()).then(|| extra(DELETED_KIND, deleted));
    std::iter::once(numbers).chain(names).collect()
}
