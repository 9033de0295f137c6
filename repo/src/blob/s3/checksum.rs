//! What goes along with a put so that the service can tell a damaged body.
//!
//! CRC-32C costs 0.1 ms for each MiB and MD5 1.5 ms, four times as much as hashing and encrypting do; but only newer
//! services check a CRC, and old ones ignore it in silence. So the first small put carries a wrong CRC: a service that
//! checks refuses it.

use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use md5::{Digest, Md5};
use tracing::debug;

use super::config::Checksum;

/// Longest put that a service's ability is tried with, in bytes: it may have to be sent three times.
const TRIAL_LEN_MAX: usize = 64 << 10;

/// The header of one put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// `Content-MD5`.
    Md5(String),
    /// `x-amz-checksum-crc32c`.
    Crc32c(String),
    /// No header.
    None,
}

impl Proof {
    pub(super) fn md5(bytes: &[u8]) -> Self {
        Self::Md5(STANDARD.encode(Md5::digest(bytes)))
    }

    pub(super) fn crc32c(bytes: &[u8]) -> Self {
        Self::Crc32c(encode(crc32c(bytes)))
    }

    /// A well formed CRC-32C that `bytes` do not have.
    pub(super) fn wrong_crc32c(bytes: &[u8]) -> Self {
        Self::Crc32c(encode(!crc32c(bytes)))
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    let crc = crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(crc).expect("a CRC-32 has 32 bits")
}

fn encode(crc: u32) -> String {
    STANDARD.encode(crc.to_be_bytes())
}

/// How one put is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// With this.
    Send(Proof),
    /// As the trial, whose outcome must be reported.
    Try,
}

/// What is used with a service.
pub(super) struct Checksums(Mutex<State>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unknown,
    /// A put is under way that will tell.
    Trying,
    Known(Checksum),
}

impl Checksums {
    /// As `wanted`; Amazon's own service needs no trial.
    pub(super) fn new(wanted: Checksum, amazon: bool) -> Self {
        let state = match wanted {
            Checksum::Auto if amazon => State::Known(Checksum::Crc32c),
            Checksum::Auto => State::Unknown,
            known => State::Known(known),
        };
        Self(Mutex::new(state))
    }

    /// How to put `bytes`. Under a lock, services insist on a checksum; and a trial would lock a version of its own.
    pub(super) fn plan(&self, bytes: &[u8], locked: bool) -> Plan {
        let known = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match *state {
                State::Unknown if bytes.len() <= TRIAL_LEN_MAX && !bytes.is_empty() && !locked => {
                    *state = State::Trying;
                    return Plan::Try;
                }
                State::Unknown | State::Trying => Checksum::Md5,
                State::Known(known) => known,
            }
        };
        Plan::Send(match known {
            Checksum::Crc32c => Proof::crc32c(bytes),
            Checksum::None if !locked => Proof::None,
            Checksum::Md5 | Checksum::None | Checksum::Auto => Proof::md5(bytes),
        })
    }

    /// The trial's outcome: what the service checks, or `None` when nothing was learnt and the next small put is the trial.
    pub(super) fn settle(&self, outcome: Option<Checksum>) {
        if let Some(checksum) = outcome {
            debug!(?checksum, "the service was tried for the checksums it checks");
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = outcome.map_or(State::Unknown, State::Known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_are_those_of_the_standards() {
        // RFC 3720 B.4 (CRC-32C of 32 zero bytes, aa36918a read from the low byte), RFC 1321 A.5.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(Proof::crc32c(b"123456789"), Proof::Crc32c(encode(0xe306_9283)));
        assert_eq!(Proof::md5(b""), Proof::Md5("1B2M2Y8AsgTpgAmY7PhCfg==".into()));
        assert_ne!(Proof::wrong_crc32c(b"a"), Proof::crc32c(b"a"));
    }

    #[test]
    fn one_small_put_is_the_trial_and_the_others_carry_md5_until_it_is_over() {
        let checksums = Checksums::new(Checksum::Auto, false);
        let large = vec![0; TRIAL_LEN_MAX + 1];
        assert_eq!(checksums.plan(&large, false), Plan::Send(Proof::md5(&large)));
        assert_eq!(checksums.plan(b"a", true), Plan::Send(Proof::md5(b"a")));
        assert_eq!(checksums.plan(b"a", false), Plan::Try);
        assert_eq!(checksums.plan(b"b", false), Plan::Send(Proof::md5(b"b")));
        checksums.settle(None);
        assert_eq!(checksums.plan(b"a", false), Plan::Try);
        checksums.settle(Some(Checksum::Crc32c));
        assert_eq!(checksums.plan(b"a", true), Plan::Send(Proof::crc32c(b"a")));
    }

    #[test]
    fn a_locked_put_is_never_without_proof() {
        let checksums = Checksums::new(Checksum::None, false);
        assert_eq!(checksums.plan(b"a", false), Plan::Send(Proof::None));
        assert_eq!(checksums.plan(b"a", true), Plan::Send(Proof::md5(b"a")));
    }

    #[test]
    fn amazon_needs_no_trial() {
        let checksums = Checksums::new(Checksum::Auto, true);
        assert_eq!(checksums.plan(b"a", false), Plan::Send(Proof::crc32c(b"a")));
    }
}
