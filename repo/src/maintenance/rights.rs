//! Whether this client may maintain a repository.

use super::parameters::Parameters;
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;
use crate::repository::Repository;

/// Blob that Velero leaves in its repositories.
const VELERO_BLOB: &str = "udmrepo.Repository";

/// Owner that Velero enters in its repositories.
const VELERO_OWNER: &str = "default@default";

/// What somebody said is meant, although it is refused otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Maintain though another client is the owner.
    pub not_owner: bool,
    /// Maintain a repository of Velero's.
    pub velero: bool,
    /// Delete more than the breaker allows.
    pub delete_many: bool,
    /// Delete everything, as there is no snapshot.
    pub no_snapshots: bool,
}

/// The repository is one of Velero's, which maintains it by jobs of its own.
pub fn is_veleros(repository: &Repository, parameters: &Parameters) -> Result<bool> {
    if parameters.owner == VELERO_OWNER {
        return Ok(true);
    }
    match repository.store().meta(&BlobId::known(VELERO_BLOB)) {
        Ok(_) => Ok(true),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Refuses when `user` (`user@host`) is not the one who maintains `repository`. The owner is the only mutual exclusion that
/// Kopia's clients know.
///
/// # Errors
/// `InvalidInput`, with the way out.
pub(super) fn check(repository: &Repository, parameters: &Parameters, user: &str, overrides: &Overrides) -> Result<()> {
    repository.format().check_writable()?;
    let refuse = |what: String| Err(RepoError::new(Kind::InvalidInput, what));
    if !overrides.velero && is_veleros(repository, parameters)? {
        return refuse(
            "the repository is Velero's, whose maintenance job looks after it; two at once can lose data. When that job is switched off for good: --force-velero"
                .into(),
        );
    }
    if parameters.owner != user && !overrides.not_owner {
        let owner = match parameters.owner.as_str() {
            "" => "nobody".into(),
            owner => format!("{owner:?}"),
        };
        return refuse(format!(
            "maintenance is owned by {owner}, not by {user:?}; run it there, take it over for good with `blockferry maintenance own`, or, when the owner is certainly not running it now: --force-owner"
        ));
    }
    Ok(())
}
