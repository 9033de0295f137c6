//! `kopia.maintenance`: when maintenance runs next, and how it went.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{Format, MAINTENANCE_ID};
use crate::crypto::{AesGcm, Secret32, key::hkdf32};
use crate::error::{RepoError, Result};
use crate::time::Time;

/// HKDF purpose of the key, and what the encryption is bound to (kopia, repo/maintenance/maintenance_schedule.go).
const KEY_PURPOSE: &[u8] = b"maintenance schedule";
const AAD: &[u8] = b"maintenance";

/// Runs kept for each task, newest first.
const RUNS_MAX: usize = 50;

/// The schedule.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceSchedule {
    /// When a full maintenance is due.
    #[serde(rename = "nextFullMaintenance")]
    pub next_full: Time,
    /// When a quick maintenance is due.
    #[serde(rename = "nextQuickMaintenance")]
    pub next_quick: Time,
    /// Past runs by task, newest first.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub runs: BTreeMap<String, Vec<MaintenanceRun>>,
}

/// One run of a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MaintenanceRun {
    /// When it began.
    pub start: Time,
    /// When it ended.
    pub end: Time,
    /// It did what it should.
    #[serde(default, skip_serializing_if = "is_false")]
    pub success: bool,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Numbers that the task tells of its run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra: Vec<RunExtra>,
}

/// Numbers of a run, in a form that depends on their kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunExtra {
    /// Kind.
    pub kind: String,
    /// The numbers, as JSON.
    pub data: Box<RawValue>,
}

/// Go writes a map that nobody has put anything into as `null`.
fn null_is_empty<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, Vec<MaintenanceRun>>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

// By reference, as serde asks for it.
fn is_false(b: &bool) -> bool {
    !*b
}

impl MaintenanceSchedule {
    /// Adds a run of `task` and drops those beyond the newest 50.
    pub fn add_run(&mut self, task: &str, run: MaintenanceRun) {
        let runs = self.runs.entry(task.to_owned()).or_default();
        runs.insert(0, run);
        runs.truncate(RUNS_MAX);
    }
}

impl Format {
    /// Reads the bytes of `kopia.maintenance`.
    ///
    /// # Errors
    /// `Corrupt` when they were not sealed for this repository or are not a schedule.
    pub fn open_maintenance(&self, sealed: &[u8]) -> Result<MaintenanceSchedule> {
        let plaintext = AesGcm::new(&self.maintenance_key()).open(AAD, sealed);
        let plaintext = plaintext.map_err(|e| RepoError::from(e).context(MAINTENANCE_ID))?;
        serde_json::from_slice(&plaintext)
            .map_err(|e| RepoError::corrupt(format!("{MAINTENANCE_ID}: not the expected JSON")).because(e))
    }

    /// The bytes of `kopia.maintenance` for `schedule`.
    pub fn seal_maintenance(&self, schedule: &MaintenanceSchedule) -> Vec<u8> {
        AesGcm::new(&self.maintenance_key()).seal(AAD, &crate::json::to_vec(schedule))
    }

    /// From the master key, or from the password where a repository came from format version 1.
    pub(super) fn maintenance_key(&self) -> Secret32 {
        let ikm = if self.enable_password_change {
            self.master_key()
        } else {
            self.format_key.as_bytes()
        };
        hkdf32(ikm, &self.unique_id, KEY_PURPOSE)
    }
}
