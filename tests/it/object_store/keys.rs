//! Where keys come from when nobody names them: a token of the cluster, the role of the instance, roles of roles; and a file
//! that is given outright wins over all of it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::bucket::Bucket;
use blockferry_tests::garage::Key;
use blockferry_tests::proxy::{Proxy, Weather};

use super::servers_are_here;
use crate::kopia_compat::judge::PASSWORD;

/// A time that no test lasts until.
const LATER: &str = "2099-01-01T00:00:00Z";

/// A service that lends keys, as far as it is asked here. It keeps what it was asked: first line and body.
struct Lender {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Lender {
    /// `answer` is given first line and body of each request.
    fn start(answer: impl Fn(&str, &str) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = asked.clone();
        // Ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &answer, &kept);
            }
        });
        Self { url, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, answer: &impl Fn(&str, &str) -> String, kept: &Mutex<Vec<String>>) {
    let mut stream = BufReader::new(stream);
    let (mut first, mut len) = (String::new(), 0);
    stream.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let line = line.trim_end().to_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            len = value.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).unwrap();
    let body = String::from_utf8(body).unwrap();
    let (status, text) = match answer(&first, &body) {
        text if text.is_empty() => ("404 Not Found", text),
        text => ("200 OK", text),
    };
    kept.lock().unwrap().push(format!("{} {body}", first.trim_end()));
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\nconnection: close\r\n\r\n",
        text.len()
    );
    stream.get_mut().write_all(format!("{head}{text}").as_bytes()).unwrap();
}

/// The answer of the token service to `action`, lending `key`.
fn lent(action: &str, key: &Key) -> String {
    format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result>\
         <AssumedRoleUser><AssumedRoleId>A:b</AssumedRoleId><Arn>arn:aws:sts::1:assumed-role/r/b</Arn></AssumedRoleUser>\
         <Credentials><AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>on-loan</SessionToken>\
         <Expiration>{LATER}</Expiration></Credentials></{action}Result></{action}Response>",
        key.id, key.secret
    )
}

/// A client that was given no key at all: no files of the host, no service of the host.
fn keyless(bucket: &Bucket, settings: &str) -> Blockferry {
    Blockferry::at(&format!("{}{settings}", bucket.url()), PASSWORD)
        .unwrap()
        .with("AWS_CONFIG_FILE", "/dev/null")
        .with("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
}

#[test]
fn a_token_of_the_cluster_is_turned_into_keys_unless_a_file_is_given() {
    if !servers_are_here() {
        return;
    }
    let (_garage, bucket, shared) = super::started();
    let key = bucket.key.clone();
    let lender = Lender::start(move |_, body| match body.contains("Action=AssumeRoleWithWebIdentity") {
        true => lent("AssumeRoleWithWebIdentity", &key),
        false => String::new(),
    });
    let [token, file, wrong] = ["token", "keys", "wrong-keys"].map(|name| shared.file(name));
    fs::write(&token, "signed-by-the-cluster").unwrap();
    let with_token = |settings: &str| {
        keyless(&bucket, settings)
            .with("AWS_EC2_METADATA_DISABLED", "true")
            .with("AWS_ROLE_ARN", "arn:aws:iam::1:role/backup")
            .with("AWS_WEB_IDENTITY_TOKEN_FILE", &token.display().to_string())
            .with("AWS_ENDPOINT_URL_STS", &lender.url)
    };
    with_token("").run(["snapshots"]).unwrap();
    let asked = lender.asked().join("\n");
    for part in ["signed-by-the-cluster", "role%2Fbackup"] {
        assert!(asked.contains(part), "{asked}");
    }

    // Velero's rule: the file of the location wins over the identity of the pod, when it works and when it does not.
    let before = lender.asked().len();
    let keys =
        |id: &str, secret: &str| format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    fs::write(&file, keys(&bucket.key.id, &bucket.key.secret)).unwrap();
    fs::write(&wrong, keys("GK000000000000000000000000", &"0".repeat(64))).unwrap();
    let given = |path: &std::path::Path| format!("&credentials={}", path.display());
    with_token(&given(&file)).run(["snapshots"]).unwrap();
    let ended = with_token(&given(&wrong)).ended(["snapshots"]).unwrap();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("does not know the access key"), "{ended:?}");
    assert_eq!(
        lender.asked().len(),
        before,
        "the token was used though a file was given"
    );
}

#[test]
fn the_role_of_the_instance_is_the_last_resort() {
    if !servers_are_here() {
        return;
    }
    let (_garage, bucket, _shared) = super::started();
    let key = bucket.key.clone();
    let lender = Lender::start(move |first, _| match first {
        first if first.starts_with("PUT /latest/api/token") => "session".into(),
        first if first.contains("/security-credentials/instance") => format!(
            r#"{{"Code":"Success","LastUpdated":"2026-01-01T00:00:00Z","Type":"AWS-HMAC","AccessKeyId":"{}","SecretAccessKey":"{}","Token":"on-loan","Expiration":"{LATER}"}}"#,
            key.id, key.secret
        ),
        first if first.contains("/security-credentials") => "instance".into(),
        _ => String::new(),
    });
    let client = keyless(&bucket, "").with("AWS_EC2_METADATA_SERVICE_ENDPOINT", &lender.url);
    client.run(["snapshots"]).unwrap();
    assert!(lender.asked().iter().any(|asked| asked.contains("/instance")));

    // Nothing anywhere: told in one error, with where was looked.
    let ended = keyless(&bucket, "")
        .with("AWS_EC2_METADATA_DISABLED", "true")
        .ended(["snapshots"])
        .unwrap();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("no keys were to be had"), "{ended:?}");
}

#[test]
fn roles_are_taken_on_one_after_the_other() {
    if !servers_are_here() {
        return;
    }
    let (_garage, bucket, shared) = super::started();
    let key = bucket.key.clone();
    let lender = Lender::start(move |_, body| match body {
        body if body.contains("role%2Ffirst") => {
            let between = Key {
                id: "BETWEEN".into(),
                secret: "hush".into(),
            };
            lent("AssumeRole", &between)
        }
        body if body.contains("role%2Flast") => lent("AssumeRole", &key),
        _ => String::new(),
    });
    let file = shared.file("roles");
    let text = format!(
        "[profile last]\nrole_arn = arn:aws:iam::2:role/last\nsource_profile = first\nendpoint_url = {url}\n\
         [profile first]\nrole_arn = arn:aws:iam::1:role/first\nsource_profile = base\nendpoint_url = {url}\n\
         [base]\naws_access_key_id = BASE\naws_secret_access_key = hush\n",
        url = lender.url
    );
    fs::write(&file, text).unwrap();
    let settings = format!("&credentials={}&profile=last", file.display());
    keyless(&bucket, &settings).run(["snapshots"]).unwrap();
    let asked = lender.asked();
    let at = |role: &str| asked.iter().position(|asked| asked.contains(role));
    assert!(
        at("role%2Ffirst").is_some() && at("role%2Ffirst") < at("role%2Flast"),
        "{asked:?}"
    );
}

/// What was asked of the storage is told by every command that works with it.
#[test]
fn requests_are_told_in_the_documents() {
    if !servers_are_here() {
        return;
    }
    let (garage, bucket, shared) = super::started();
    let proxy = Proxy::start(&garage.address(0), 1, Weather::default()).unwrap();
    let ours = Blockferry::in_bucket(&bucket.through(proxy.endpoint()), PASSWORD).unwrap();
    let volume = shared.file("volume");
    fs::write(&volume, vec![7; 3 << 20]).unwrap();
    let backup = ours.backup(&volume, &["--compression", "none"]).unwrap();
    let id = backup["snapshotId"].as_str().unwrap();
    let restore = ours.restore(id, &shared.file("restored"), &[]).unwrap();
    proxy.forget();
    let status = ours.run_json(["repo", "status"]).unwrap();
    for (document, op) in [(&backup, "put"), (&restore, "range"), (&status, "list")] {
        let storage = &document["storage"];
        let of_op = &storage["operations"][op];
        for number in [
            &storage["requests"],
            &storage["bytesDown"],
            &of_op["count"],
            &of_op["latencyUsMean"],
            &of_op["latencyUsP99"],
        ] {
            assert!(number.as_u64().is_some_and(|number| number > 0), "{op}: {storage}");
        }
    }
    assert!(backup["storage"]["bytesUp"].as_u64().unwrap() > 1 << 20, "{backup}");
    let passed = proxy.records().len() as u64;
    let told = status["storage"]["requests"].as_u64().unwrap();
    // The one for .storageconfig, which comes before there is a store, is not told.
    assert!(
        told <= passed && passed <= told + 2,
        "{told} told, {passed} passed: {status}"
    );
}
