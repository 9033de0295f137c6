//! Input that is not what it should be: parameters, blobs, lists, storage, volumes, targets, arguments.
//!
//! Every test asks three things: does the message name the thing, the place and the way out; is the exit code that of the
//! contract; and is nothing half-written left behind.
//!
//! | module | what is bad |
//! |---|---|
//! | [`access`] | repository places, passwords |
//! | [`parameters`] | the format blob: unknown algorithms, versions, features, locks |
//! | [`bits`] | any bit of any blob; blobs cut short or gone |
//! | [`lists`] | lists, directories and manifests that lie |
//! | [`storage`] | storage that is full, forbidden, or has another time |
//! | [`sources`] | volumes that fail, shrink, or have odd sizes |
//! | [`targets`] | targets that are too small, in use, read-only or not empty |
//! | [`arguments`] | the command line |

mod access;
mod arguments;
mod bits;
mod healing;
mod lists;
mod parameters;
mod sources;
mod storage;
pub(crate) mod support;
mod targets;
