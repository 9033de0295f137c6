//! `blockferry delete`.

use std::process::ExitCode;

use clap::Args;
use repo::compress::CompressionPolicy;
use repo::manifest::Changes;
use repo::session::{WriteOptions, WriteSession};
use serde::Serialize;

use super::output::Output;
use super::{Global, image};
use crate::error::{JobError, Result};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Snapshots: ids or unique beginnings of ids
    #[arg(required = true)]
    snapshots: Vec<String>,
}

#[derive(Serialize)]
struct Document {
    deleted: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let repository = image::open(global)?;
    let manifests = repository.manifests()?;
    let snapshots = repository.snapshots()?;
    let mut changes = Changes::default();
    let mut deleted: Vec<String> = Vec::new();
    for name in &arguments.snapshots {
        if name.starts_with("latest") {
            return Err(JobError::Usage(
                "delete takes ids, not \"latest\": what is latest can change between two looks".into(),
            ));
        }
        let snapshot = image::find_snapshot(&snapshots, name)?;
        let manifest = snapshot.id.and_then(|id| manifests.get(&id));
        let manifest = manifest.ok_or_else(|| JobError::Usage(format!("snapshot {name:?} was deleted just now")))?;
        if deleted.contains(&manifest.id.to_string()) {
            continue;
        }
        changes.delete(manifest);
        deleted.push(manifest.id.to_string());
    }
    let options = WriteOptions {
        sealers: 0,
        uploads: 1,
        compression: CompressionPolicy::None,
        user: image::user_name(),
        host: image::host_name(),
        ..WriteOptions::default()
    };
    WriteSession::begin(&repository, &options)?.commit_changes(&changes)?;
    output.print(&Document { deleted }, |d| {
        d.deleted.iter().map(|id| format!("deleted snapshot {id}\n")).collect()
    });
    Ok(ExitCode::SUCCESS)
}
