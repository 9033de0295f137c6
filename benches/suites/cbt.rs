//! A changed block listing of 172 million blocks, over TLS on loopback, into the map of a 64 TiB volume.

use blockferry_benches::Result;
use blockferry_benches::bars;
use blockferry_benches::measure::{Input, Measured, measure};
use blockferry_benches::report::Report;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, Site};
use blockferry_benches::tool::{Kind, Tool, installed};
use blockferry_tests::cbt_server::listing::Sparse;
use blockferry_tests::cbt_server::{AUTHORITY, CbtServer, Play};

use crate::report;

/// One block of 4 KiB in a hundred of 64 TiB: every chunk is touched, none twice in a row. What a driver in the field sends.
const LISTING: Sparse = Sparse {
    capacity: 64 << 40,
    every: 100,
    per_page: 4096,
};

/// Bytes of a block on the wire, about; the rate is counted on them.
const WIRE_BYTES: u64 = 14;

pub(crate) fn run(options: &Options) -> Result<Report> {
    // The suite needs the work folder, not an image.
    let mut site = Site::sparse(&options.dir, 1 << 20, 0)?;
    site.size = LISTING.count() * WIRE_BYTES;
    for (name, text) in [("cbt-ca.pem", AUTHORITY), ("cbt-token", "token")] {
        let path = site.dir.join(name);
        std::fs::write(&path, text).map_err(|error| format!("write {}: {error}", path.display()))?;
    }
    let (mut tools, left_out) = installed(options);
    tools.retain(|tool| tool.kind == Kind::Blockferry);
    let server = CbtServer::tls(|_, asked| Play::whole(LISTING.pages(asked.starting_offset)));
    let server = server.map_err(|failure| failure.to_string())?;
    let contenders = tools.iter().map(|tool| changed(&site, tool, &server)).collect();
    let rows = rounds::run(contenders, options.runs);
    let about = format!(
        "Ask a SnapshotMetadata service for {} changed blocks of a {} TiB volume, over TLS on loopback, into the map. The \
         service runs in the runner, on a core of its own: its work is in `others`. Median of {}. The rate counts bytes of \
         messages.",
        LISTING.count(),
        LISTING.capacity >> 40,
        options.runs
    );
    let mut report = report("cbt", about, &site, &tools, rows, left_out);
    report.bars = bars::cbt(&report.rows);
    Ok(report)
}

fn changed<'a>(site: &'a Site, tool: &'a Tool, server: &'a CbtServer) -> Contender<'a> {
    let run = || {
        let mut changed = tool.command(site);
        changed.args(["changed", "--summary", "--json", "--address", server.address()]);
        changed.arg("--ca").arg(site.dir.join("cbt-ca.pem"));
        changed.arg("--token-file").arg(site.dir.join("cbt-token"));
        changed.args(["--namespace", "n", "--snapshot", "s", "--base", "b"]);
        changed.args(["--size", &LISTING.capacity.to_string()]);
        complete(measure(&mut changed, Input::Nothing, &site.dir, None)?)
    };
    Contender {
        name: tool.kind.name().to_owned(),
        note: "changed --summary".to_owned(),
        run: Box::new(run),
    }
}

/// A run counts when every block was received and every chunk set.
fn complete(run: Measured) -> Result<Measured> {
    let said = |field: &str| run.output.as_ref().and_then(|output| output[field].as_u64());
    let (tuples, bytes) = (said("tuples"), said("changedBytes"));
    match tuples == Some(LISTING.count()) && bytes == Some(LISTING.capacity) {
        true => Ok(run),
        false => Err(format!(
            "{tuples:?} blocks and {bytes:?} bytes are not the whole listing"
        )),
    }
}
