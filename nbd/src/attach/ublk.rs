//! A volume behind the user-space block driver.

use super::error::AttachError;
use super::kind::{Kind, Missing};
use crate::export::Export;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What is needed to attach or adopt.
pub(super) struct Request<'a> {
    /// The volume, in whole blocks.
    pub(super) export: &'a Arc<Export>,
    /// Bytes of a logical block.
    pub(super) block: u32,
    /// Kept in the device, to know it again.
    pub(super) token: u64,
}

#[derive(Debug)]
pub(super) struct UblkDevice {
    path: PathBuf,
}

impl UblkDevice {
    pub(super) fn attach(request: &Request<'_>) -> Result<Self, AttachError> {
        let _ = (request.export, request.block, request.token);
        Err(AttachError::Unavailable {
            kind: Kind::Ublk,
            missing: vec![Missing::NotBuilt],
            usable: Vec::new(),
        })
    }

    pub(super) fn adopt(_: &Request<'_>) -> Result<Option<Self>, AttachError> {
        Ok(None)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn resize(&self, _: u64) -> Result<(), AttachError> {
        Ok(())
    }

    pub(super) fn detach(&mut self, _: Duration) -> Result<(), AttachError> {
        Ok(())
    }

    pub(super) fn abort(&mut self) -> Result<(), AttachError> {
        Ok(())
    }
}

/// The device with this token.
pub(super) fn find(_: u64) -> Result<Option<PathBuf>, AttachError> {
    Ok(None)
}

/// Takes away the device with this token, which nobody serves.
pub(super) fn take_away(_: u64) -> Result<(), AttachError> {
    Ok(())
}
