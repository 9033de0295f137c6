//! The store against a service of the test's own making.

mod reads;
mod refusals;
mod settings;
mod versions;
mod writes;

use zeroize::Zeroizing;

use super::{Credentials, S3Config, S3Store};
use crate::blob::loopback::{Answer, Request, Server};
use crate::id::BlobId;

/// A bucket at `server`, with keys, below `a/`.
fn config(server: &Server) -> S3Config {
    let mut config = S3Config::new("bucket");
    config.prefix = "a/".into();
    config.endpoint = Some(server.url.clone());
    config.region = Some("test-1".into());
    config.credentials = Credentials::Static {
        key_id: "KEYID".into(),
        secret: Zeroizing::new("hush".into()),
        token: None,
    };
    config
}

/// A store at a service that answers with `answer`, and has no `.storageconfig`.
fn store(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> (Server, S3Store) {
    let server = Server::start(without_settings(answer));
    let store = S3Store::open(config(&server)).unwrap();
    (server, store)
}

fn without_settings(answer: impl Fn(&Request) -> Answer) -> impl Fn(&Request) -> Answer {
    move |request| match request.path.ends_with("/.storageconfig") {
        true => Answer::refused(404, "NoSuchKey", "The specified key does not exist."),
        false => answer(request),
    }
}

fn id(text: &str) -> BlobId {
    BlobId::known(text)
}
