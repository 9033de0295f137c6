//! The snapshot an increment continues from.

use repo::object::BlockAddressTable;
use repo::snapshot::{Snapshot, Source, tag};
use repo::{ContentId, Image, Kind, ManifestId, Repository};

use super::audit::Walk;
use super::ladder::NoParent;
use crate::error::Result;

/// Which parent the caller wants.
#[derive(Clone, Debug, Default)]
pub enum ParentChoice {
    /// The newest that fits.
    #[default]
    Auto,
    /// None.
    None,
    /// This one, whatever its source.
    Named(Box<Snapshot>),
}

/// What a parent has to be.
pub(super) struct Wanted<'a> {
    pub(super) choice: &'a ParentChoice,
    /// Whose volume is backed up.
    pub(super) source: &'a Source,
    /// Volume the change ids belong to, when known.
    pub(super) volume_id: Option<&'a str>,
    /// Change id that a list of changes starts from, when known.
    pub(super) base: Option<&'a str>,
    /// There is a list of changes: only the state it starts from will do.
    pub(super) has_list: bool,
}

/// A snapshot that can be continued.
#[derive(Clone, Debug)]
pub(super) struct Parent {
    pub(super) id: ManifestId,
    pub(super) image: Image,
}

/// What the earlier snapshots of a source say.
pub(super) struct Found {
    /// The one to continue from.
    pub(super) parent: std::result::Result<Parent, NoParent>,
    /// When an audit of the source failed, as the newest tells.
    pub(super) doubt: Option<String>,
    /// Where the walk of the audit stands, as the newest tells.
    pub(super) walk: Walk,
}

impl Parent {
    /// The newest snapshot in `repository` that fits, with its image.
    ///
    /// # Errors
    /// Of the storage. What is wrong with a parent only costs the parent.
    pub(super) fn find(repository: &Repository, wanted: &Wanted<'_>) -> Result<Found> {
        let listing = repository.list_snapshots()?;
        let newest_image = images(&listing.snapshots, wanted.source).next();
        let tag_of = |key: &str| newest_image.and_then(|snapshot| snapshot.tags.get(key));
        let chosen = match wanted.choice {
            ParentChoice::None => Err(NoParent::NotWanted),
            ParentChoice::Named(snapshot) => fits(snapshot, wanted).map(|()| &**snapshot),
            ParentChoice::Auto => {
                let source = wanted.source.to_string();
                let may_be_ours = |of: &Option<String>| of.as_ref().is_none_or(|text| *text == source);
                match listing.damaged.iter().find(|damaged| may_be_ours(&damaged.source)) {
                    Some(damaged) if wanted.has_list && wanted.base.is_none() => Err(NoParent::Unreadable(format!(
                        "nobody can tell which snapshot the list starts from while a manifest cannot be read ({})",
                        damaged.error
                    ))),
                    _ => newest(&listing.snapshots, wanted),
                }
            }
        };
        Ok(Found {
            parent: match chosen {
                Ok(snapshot) => Self::load(repository, snapshot)?,
                Err(why) => Err(why),
            },
            doubt: tag_of(tag::UNTRUSTED).cloned(),
            walk: Walk::of_tag(tag_of(tag::AUDIT_WALK).map(String::as_str)),
        })
    }

    fn load(repository: &Repository, snapshot: &Snapshot) -> Result<std::result::Result<Self, NoParent>> {
        let id = snapshot.id.expect("a snapshot that was read has an id");
        match repository.image(snapshot) {
            Ok(image) => Ok(Ok(Self { id, image })),
            Err(e) if e.is_damage() => Ok(Err(NoParent::Unreadable(format!("{id}: {e}")))),
            Err(e) if e.kind() == Kind::InvalidInput => Ok(Err(NoParent::Unfit(format!("{id}: {e}")))),
            Err(e) => Err(e.into()),
        }
    }

    /// What the next snapshot of `count` chunks says before anything is read: the parent's entries, `zero` past its end.
    pub(super) fn continued(&self, count: usize, zero: &ContentId) -> std::result::Result<BlockAddressTable, NoParent> {
        let child = self.image.table.child(blockio::CHUNK_SIZE, count, zero);
        child.map_err(|unfit| NoParent::Unfit(format!("{}: {unfit}", self.id)))
    }
}

/// The complete block images of `source` among `snapshots` (oldest first), newest first.
fn images<'a>(snapshots: &'a [Snapshot], source: &Source) -> impl Iterator<Item = &'a Snapshot> {
    snapshots.iter().rev().filter(move |snapshot| {
        let uploader = snapshot.tags.get(tag::UPLOADER).map(String::as_str);
        snapshot.source == *source && snapshot.incomplete.is_empty() && uploader == Some(tag::UPLOADER_BLOCK)
    })
}

/// The newest of `snapshots` (oldest first) that is a complete block image of the source and fits the rest.
fn newest<'a>(snapshots: &'a [Snapshot], wanted: &Wanted<'_>) -> std::result::Result<&'a Snapshot, NoParent> {
    let mut why = NoParent::NoneYet;
    for snapshot in images(snapshots, wanted.source) {
        match fits(snapshot, wanted) {
            Ok(()) => return Ok(snapshot),
            // The reason of the newest is the one to tell.
            Err(e) if why == NoParent::NoneYet => why = e,
            Err(_) => {}
        }
    }
    Err(why)
}

/// Whether `snapshot` is a complete one of the volume, and of the state the list starts from.
fn fits(snapshot: &Snapshot, wanted: &Wanted<'_>) -> std::result::Result<(), NoParent> {
    let id = snapshot.id.map_or_else(String::new, |id| id.to_string());
    let tag = |key: &str| {
        snapshot
            .tags
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    };
    if !snapshot.incomplete.is_empty() {
        return Err(NoParent::Unfit(format!("{id} is incomplete ({})", snapshot.incomplete)));
    }
    if let Some(volume) = wanted.volume_id {
        match (tag(tag::VOLUME_ID), tag(tag::CHANGE_ID)) {
            (Some(of), Some(_)) if of == volume => {}
            (Some(of), Some(_)) => {
                return Err(NoParent::NoneFits(format!("{id} is of volume {of}, this is {volume}")));
            }
            _ => return Err(NoParent::NoneFits(format!("{id} has no change id and volume id"))),
        }
    }
    match (wanted.base, tag(tag::CHANGE_ID)) {
        (Some(base), Some(has)) if base == has => Ok(()),
        (Some(base), has) => Err(NoParent::NoneFits(format!(
            "the list starts from change id {base}, {id} has {}",
            has.unwrap_or("none")
        ))),
        (None, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(number: u8, path: &str, tags: &[(&str, &str)]) -> Snapshot {
        let text = format!(
            r#"{{"id":"","source":{{"host":"h","userName":"u","path":"{path}"}},"startTime":"2026-01-0{number}T00:00:00Z","endTime":"2026-01-01T00:00:00Z"}}"#
        );
        let mut snapshot: Snapshot = serde_json::from_str(&text).expect("valid");
        snapshot.id = Some(format!("{number:032x}").parse().expect("valid"));
        snapshot.tags.insert(tag::UPLOADER.into(), tag::UPLOADER_BLOCK.into());
        for (key, value) in tags {
            snapshot.tags.insert((*key).into(), (*value).into());
        }
        snapshot
    }

    fn wanted<'a>(source: &'a Source, volume_id: Option<&'a str>, base: Option<&'a str>) -> Wanted<'a> {
        Wanted {
            choice: &ParentChoice::Auto,
            source,
            volume_id,
            base,
            has_list: true,
        }
    }

    #[track_caller]
    fn check(snapshots: &[Snapshot], wanted: &Wanted<'_>, expect: Result<u8, &str>) {
        let found = newest(snapshots, wanted).map(|snapshot| snapshot.id.unwrap().to_string());
        match expect {
            Ok(number) => assert_eq!(found, Ok(format!("{number:032x}"))),
            Err(words) => {
                let error = format!("{:?}", found.expect_err("none fits"));
                assert!(error.contains(words), "{error}");
            }
        }
    }

    #[test]
    fn the_newest_complete_image_of_the_source_is_taken() {
        let source: Source = "u@h:/a".parse().unwrap();
        let mut incomplete = snapshot(4, "/a", &[]);
        incomplete.incomplete = "checkpoint".into();
        let mut by_others = snapshot(5, "/a", &[]);
        by_others.tags.insert(tag::UPLOADER.into(), "kopia".into());
        let all = [
            snapshot(1, "/a", &[]),
            snapshot(2, "/a", &[]),
            snapshot(3, "/b", &[]),
            incomplete,
            by_others,
        ];
        check(&all, &wanted(&source, None, None), Ok(2));
        check(&all[2..], &wanted(&source, None, None), Err("NoneYet"));
    }

    #[test]
    fn volume_and_change_id_have_to_be_there_and_equal() {
        let source: Source = "u@h:/a".parse().unwrap();
        let ids = |volume, change| [(tag::VOLUME_ID, volume), (tag::CHANGE_ID, change)];
        let all = [
            snapshot(1, "/a", &ids("v", "c1")),
            snapshot(2, "/a", &ids("v", "c2")),
            snapshot(3, "/a", &ids("other", "c3")),
            snapshot(4, "/a", &ids("v", "")),
            snapshot(5, "/a", &[]),
        ];
        check(&all, &wanted(&source, Some("v"), None), Ok(2));
        check(&all, &wanted(&source, Some("v"), Some("c1")), Ok(1));
        check(
            &all,
            &wanted(&source, Some("v"), Some("c3")),
            Err("no change id and volume id"),
        );
        check(&all, &wanted(&source, None, Some("c9")), Err("has none"));
        check(&all[2..3], &wanted(&source, Some("v"), None), Err("is of volume other"));
        check(&all, &wanted(&source, None, None), Ok(5));
    }
}
