//! Looks whether all contents of the newest snapshot's image are alive, as an increment does before it takes them over: prints a
//! JSON document. Of use on what `wide_repository` makes.
//!
//! `cargo run --release -p blockferry-repo --example liveness -- FOLDER PASSWORD`

use std::sync::Arc;
use std::time::Instant;

use repo::Repository;
use repo::blob::FsStore;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, password] = args.as_slice() else {
        return Err("FOLDER PASSWORD".into());
    };
    let started = Instant::now();
    let repository = Repository::open(Arc::new(FsStore::open(folder)?), password)?;
    let snapshot = repository.snapshots()?.pop().ok_or("no snapshot")?;
    let opened_s = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let image = repository.image(&snapshot)?;
    let loaded_s = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let live = repository.liveness(&snapshot.id.ok_or("a snapshot without an id")?, &image.table)?;
    let checked_s = started.elapsed().as_secs_f64();
    if !live.stands || !live.dead.is_empty() {
        return Err(format!("stands: {}, dead: {}", live.stands, live.dead.len()).into());
    }
    println!(
        r#"{{"ids":{},"openedSeconds":{opened_s:.3},"loadedSeconds":{loaded_s:.3},"checkedSeconds":{checked_s:.3}}}"#,
        image.table.count()
    );
    Ok(())
}
