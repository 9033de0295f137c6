//! The closed set of algorithms a Kopia repository may name: hashes, ciphers and password-to-key functions.
//!
//! Names are those of Kopia's registries and parse into enums; a name outside the set is an error with the name in it,
//! never a default. Nothing here does IO, and nothing here knows packs, indexes or blobs.
//!
//! | module     | answers                                                          |
//! |------------|------------------------------------------------------------------|
//! | [`hash`]   | what is the id of these bytes, alone or in batches on SIMD lanes  |
//! | [`cipher`] | seal and open one content, or one blob under a given key          |
//! | [`key`]    | password to format key, one key to many by purpose                |
//! | [`ecc`]    | sealed bytes that carry error correction, without it              |

pub mod cipher;
pub mod ecc;
pub mod hash;
pub mod key;
mod lanes;

pub use cipher::{AesGcm, Cipher, CipherAlgorithm, OVERHEAD, Unauthentic};
pub use hash::{Digest, HashAlgorithm, Hasher};
pub use key::{KeyAlgorithm, Secret32, hkdf};
pub use lanes::Kernel;
