//! What all stores behind a network share: connections, and what a connection that failed means.

use std::env;
use std::error::Error;
use std::fmt::Display;
use std::io;
use std::time::Duration;

use reqwest::{Certificate, Client, NoProxy, Proxy, redirect, retry};

use crate::error::{Kind, RepoError, Result};

/// Time for which an idle connection is kept. Services close theirs after 5 to 60 s; one closed there costs a new one here.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// Time after which a silent peer is asked for a sign of life, and between three such questions; a dead one is so known
/// after 60 s, long before the whole request's time has passed.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Time for which sent bytes may stay unacknowledged before the connection counts as dead.
const ACKNOWLEDGE_MAX: Duration = Duration::from_secs(30);

/// Asked without proxy whatever the environment says: this host, and the addresses that hand out the keys of an instance.
const NO_PROXY: &str = "localhost,127.0.0.0/8,::1,169.254.0.0/16,fd00:ec2::254";

/// Way out when a service does not speak TLS.
const NO_TLS: &str = "a service without TLS is written http://";

/// How a service is connected to.
pub(super) struct Connections<'a> {
    /// Certificates to trust beside the system's, in PEM.
    pub(super) ca: Option<&'a [u8]>,
    /// Time to connect, TLS included.
    pub(super) connect_timeout: Duration,
    /// The service has no TLS.
    pub(super) plain: bool,
    /// Any certificate is trusted.
    pub(super) skip_verify: bool,
}

impl Connections<'_> {
    /// A pool of connections, of HTTP/1.1: with HTTP/2 all packs would share one connection and one flow-control window.
    pub(super) fn client(&self) -> Result<Client> {
        let mut builder = Client::builder()
            .http1_only()
            .redirect(redirect::Policy::none()) // a redirect means the wrong region, which is told
            .retry(retry::never())
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .referer(false)
            .no_proxy() // but those below
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(IDLE_MAX)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE)
            .tcp_keepalive_retries(3)
            .tcp_user_timeout(ACKNOWLEDGE_MAX)
            .tcp_nodelay(true);
        for proxy in proxies(|name| env::var(name).ok())? {
            builder = builder.proxy(proxy);
        }
        if let Some(pem) = self.ca {
            builder = builder.tls_certs_merge(certificates(pem)?);
        }
        if self.plain {
            builder = builder.tls_certs_only([]); // the system's certificates may be missing and need not be read
        } else if self.skip_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        builder.build().map_err(|e| {
            let what = "prepare TLS: the system's certificates cannot be read; install the package ca-certificates or give a CA of your own";
            RepoError::new(Kind::Certificate, what).because(e)
        })
    }
}

/// The proxies that the environment names, as `variable` tells its variables.
fn proxies(variable: impl Fn(&str) -> Option<String>) -> Result<Vec<Proxy>> {
    let either = |name: &str| {
        let found = variable(name).or_else(|| variable(&name.to_lowercase()));
        found.filter(|value| !value.trim().is_empty())
    };
    let exceptions = either("NO_PROXY").unwrap_or_default();
    let exceptions = NoProxy::from_string(&format!("{exceptions},{NO_PROXY}"));
    let mut found = Vec::new();
    for (name, proxy) in [
        ("HTTPS_PROXY", Proxy::https as fn(String) -> reqwest::Result<Proxy>),
        ("HTTP_PROXY", Proxy::http),
        ("ALL_PROXY", Proxy::all),
    ] {
        if let Some(value) = either(name) {
            // The value may hold a password and is not told.
            let proxy = proxy(value).map_err(|_| {
                RepoError::new(
                    Kind::InvalidInput,
                    format!("the environment variable {name} is not the URL of a proxy"),
                )
            })?;
            found.push(proxy.no_proxy(exceptions.clone()));
        }
    }
    Ok(found)
}

/// The certificates in `pem`: at least one.
fn certificates(pem: &[u8]) -> Result<Vec<Certificate>> {
    let bad = || {
        RepoError::new(
            Kind::InvalidInput,
            "the CA given is no certificate in PEM form (-----BEGIN CERTIFICATE-----)",
        )
    };
    let found = Certificate::from_pem_bundle(pem).map_err(|e| bad().because(e))?;
    if found.is_empty() { Err(bad()) } else { Ok(found) }
}

/// Kind and reason of a request to `endpoint` that brought no answer. `tried` says for how long.
pub(super) fn sort_failure(e: &(dyn Error + 'static), endpoint: &dyn Display, tried: &str) -> (Kind, String) {
    if let Some(e) = find::<rustls::Error>(e) {
        return match e {
            rustls::Error::InvalidCertificate(why) => (
                Kind::Certificate,
                format!("the certificate of {endpoint} is not trusted: {why}; give the CA that signed it"),
            ),
            e => (Kind::Unreachable, format!("no TLS with {endpoint}: {e}; {NO_TLS}")),
        };
    }
    match find::<reqwest::Error>(e) {
        Some(transport) if transport.is_connect() => {
            let why = if chain(e).any(|e| e.to_string() == "dns error") {
                "its name is not known to DNS".to_owned()
            } else if transport.is_timeout() {
                "it does not answer".to_owned()
            } else {
                match chain(e).last().map(ToString::to_string) {
                    Some(last) if last.contains("tls handshake") => format!("{last}; {NO_TLS}"),
                    last => last.unwrap_or_default(),
                }
            };
            (
                Kind::Unreachable,
                format!("{endpoint} cannot be reached: {why} ({tried})"),
            )
        }
        Some(_) => (Kind::Unavailable, format!("the connection broke ({tried})")),
        None if find::<io::Error>(e).is_some() => (Kind::Unavailable, format!("the connection broke ({tried})")),
        None => (Kind::Storage, "the answer is not understood".to_owned()),
    }
}

/// `e` and all its causes, those wrapped in an `io::Error` included, which its `source` passes over.
pub(super) fn chain<'a>(e: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(e), |e| {
        let e: &'a (dyn Error + 'static) = *e;
        match e.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => e.source(),
        }
    })
}

/// The first error of type `E` in the chain of `e`.
pub(super) fn find<'a, E: Error + 'static>(e: &'a (dyn Error + 'static)) -> Option<&'a E> {
    chain(e).find_map(|e| e.downcast_ref())
}

/// The text of the first XML element `name` in `text`. Answers to errors are short and flat.
pub(super) fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once("</")?;
    Some(inner.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(variables: &[(&str, &str)]) -> Result<Vec<Proxy>> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        proxies(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn proxies_come_from_the_environment() {
        assert!(named(&[]).unwrap().is_empty());
        assert!(named(&[("HTTPS_PROXY", " ")]).unwrap().is_empty());
        let both = named(&[
            ("https_proxy", "http://proxy:3128"),
            ("HTTP_PROXY", "http://proxy:3128"),
            ("NO_PROXY", "a.b"),
        ]);
        assert_eq!(both.unwrap().len(), 2);
    }

    #[test]
    fn a_proxy_that_is_no_url_is_told_without_its_password() {
        let e = named(&[("HTTPS_PROXY", "http://user:hush@[:3128")]).unwrap_err();
        assert_eq!(e.kind(), Kind::InvalidInput);
        assert!(
            e.to_string().contains("HTTPS_PROXY") && !format!("{e:?}").contains("hush"),
            "{e:?}"
        );
    }
}
