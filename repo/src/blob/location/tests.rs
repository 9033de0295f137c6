use proptest::option::of;
use proptest::prelude::*;

use super::super::{Habits, Limits};
use super::*;

/// Enough of a certificate to be taken for one.
const PEM: &[u8] = b"-----BEGIN CERTIFICATE-----\n";

fn parse(text: &str) -> Result<Location> {
    text.parse()
}

fn s3(text: &str) -> S3Location {
    match parse(text).expect("an address") {
        Location::S3(s3) => s3,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(text: &str, words: &[&str]) {
    let error = parse(text).expect_err(text);
    assert_eq!(error.kind(), Kind::InvalidInput, "{text}");
    for word in words {
        assert!(error.what().contains(word), "{text}: no {word:?} in {}", error.what());
    }
}

#[test]
fn directories_are_written_as_paths_or_file_addresses() {
    for (text, path) in [
        ("/backups/r1", "/backups/r1"),
        ("r1", "r1"),
        ("file:///backups/r%201", "/backups/r 1"),
        ("/odd ?&%41 name", "/odd ?&%41 name"),
    ] {
        assert_eq!(
            parse(text).expect("a directory"),
            Location::Directory(path.into()),
            "{text}"
        );
    }
    refused("", &["give a directory"]);
    refused("file://host/x", &["file:///DIRECTORY"]);
    refused("file:///x%zz", &["file:///DIRECTORY"]);
}

#[test]
fn an_s3_address_has_all_its_settings() {
    let plain = s3("s3://bucket");
    assert_eq!((plain.bucket.as_str(), plain.prefix.as_str()), ("bucket", ""));
    assert_eq!(s3("s3://bucket/").prefix, "");
    assert_eq!(s3("s3://bucket/a/b"), s3("s3://bucket/a/b/"));

    let full = s3(
        "s3://my-bucket/a/b%3F%25/?endpoint=http://127.0.0.1:3900/&region=garage&profile=p%26q\
        &credentials=/etc/aws%20keys&ca=/etc/ca.pem&insecureSkipTlsVerify=true&pathStyle=false&storageClass=STANDARD_IA\
        &sse=aws:kms&kmsKeyId=arn:aws:kms:1:2:key/3&tags=team=a,b%2Cc=d=e&checksum=crc32c",
    );
    let expected = S3Location {
        bucket: "my-bucket".into(),
        prefix: "a/b?%/".into(),
        endpoint: Some("http://127.0.0.1:3900".into()),
        region: Some("garage".into()),
        credentials: Some("/etc/aws keys".into()),
        profile: Some("p&q".into()),
        anonymous: false,
        ca: Some(Ca::File("/etc/ca.pem".into())),
        skip_tls_verify: true,
        path_style: Some(false),
        storage_class: Some("STANDARD_IA".into()),
        encryption: Encryption::Kms(Some("arn:aws:kms:1:2:key/3".into())),
        tags: vec![("team".into(), "a".into()), ("b,c".into(), "d=e".into())],
        checksum: ChecksumChoice::Crc32c,
    };
    assert_eq!(full, expected);
}

#[test]
fn encryption_is_of_one_sort() {
    let kind = |query: &str| s3(&format!("s3://b/?{query}")).encryption;
    assert_eq!(kind(""), Encryption::Bucket);
    assert_eq!(kind("sse=AES256"), Encryption::Service);
    assert_eq!(kind("sse=aws:kms"), Encryption::Kms(None));
    assert_eq!(kind("kmsKeyId=k"), Encryption::Kms(Some("k".into())));
    assert_eq!(kind("sseKeyFile=/k"), Encryption::KeyFile("/k".into()));
    for query in [
        "sse=AES256&kmsKeyId=k",
        "sse=AES256&sseKeyFile=/k",
        "kmsKeyId=k&sseKeyFile=/k",
    ] {
        refused(&format!("s3://b/?{query}"), &["exclude each other"]);
    }
    refused("s3://b/?sse=rot13", &["rot13", "AES256 and aws:kms"]);
}

#[test]
fn addresses_of_google_and_azure_have_their_settings() {
    let gcs = parse(
        "gs://b/x?credentials=/c.json&endpoint=http://127.0.0.1:4443&storageClass=NEARLINE&kmsKeyName=projects/p",
    );
    let expected = GcsLocation {
        bucket: "b".into(),
        prefix: "x/".into(),
        credentials: Some("/c.json".into()),
        endpoint: Some("http://127.0.0.1:4443".into()),
        storage_class: Some("NEARLINE".into()),
        kms_key: Some("projects/p".into()),
        ..GcsLocation::default()
    };
    assert_eq!(gcs.expect("an address"), Location::Gcs(expected));
    let azure = parse("az://$web/x/?account=acc&endpoint=http://127.0.0.1:10000/acc&storageClass=Cool&anonymous=true");
    let expected = AzureLocation {
        container: "$web".into(),
        prefix: "x/".into(),
        account: Some("acc".into()),
        endpoint: Some("http://127.0.0.1:10000/acc".into()),
        storage_class: Some("Cool".into()),
        anonymous: true,
        ..AzureLocation::default()
    };
    assert_eq!(azure.expect("an address"), Location::Azure(expected));
}

#[test]
fn unknown_settings_are_refused_with_the_known_ones() {
    refused(
        "s3://b/?regoin=x",
        &["\"regoin\"", "region", "storageClass", "checksum"],
    );
    refused("gs://b/?region=x", &["\"region\"", "kmsKeyName"]);
    refused("az://b/?region=x", &["\"region\"", "account"]);
    refused("s3://b/?region=x&region=y", &["region is there twice"]);
    refused("s3://b/?region=", &["region has no value"]);
    refused("s3://b/?pathStyle=maybe", &["pathStyle", "true or false"]);
    refused("ftp://b/", &["s3://", "gs://", "az://"]);
}

#[test]
fn secrets_in_an_address_are_refused_and_not_repeated() {
    for text in [
        "s3://b/?secretAccessKey=HUSH",
        "s3://b/?aws_secret_access_key=HUSH",
        "s3://b/?accessKeyId=HUSH",
        "s3://b/?session-token=HUSH",
        "s3://b/?password=HUSH",
        "s3://AKID:HUSH@b/",
        "gs://b/?privateKey=HUSH",
        "az://b/?accountKey=HUSH",
        "az://b/?sas=HUSH",
        "az://b/?sig=HUSH",
        "az://b/?connectionString=HUSH",
    ] {
        refused(text, &["is a secret", "credentials=FILE"]);
    }
    for text in [
        "s3://b/?endpoint=https://AKID:HUSH@host",
        "s3://b/?region=a&endpoint=https%3A%2F%2FAKID%3AHUSH%40host",
        "s3://HUSH b/",
    ] {
        refused(text, &[]);
    }
    for text in [
        "s3://AKID:HUSH@b/",
        "s3://b/?token=HUSH",
        "s3://b/?endpoint=http://a:HUSH@h",
    ] {
        let error = parse(text).expect_err(text);
        assert!(!format!("{error:?}").contains("HUSH"), "{error:?}");
    }
}

#[test]
fn a_prefix_without_a_slash_is_taken_as_it_is_when_asked_for() {
    let location = s3("s3://bucket/?keyPrefix=flat-");
    assert_eq!(location.prefix, "flat-");
    let text = Location::S3(location).to_string();
    assert_eq!(text, "s3://bucket/?keyPrefix=flat-");
    refused("s3://bucket/a/?keyPrefix=flat-", &["keyPrefix"]);
    refused("s3://bucket/?keyPrefix=a//b", &["prefix"]);
}

#[test]
fn buckets_and_prefixes_that_cannot_be_used_are_refused() {
    for text in ["s3://", "s3:///x", "s3://a b/", "s3://a%2Fb/", "s3://../", "s3://b%zz/"] {
        refused(text, &[]);
    }
    for text in [
        "s3://b//x",
        "s3://b/x//y",
        "s3://b/../y",
        "s3://b/x/./y",
        "s3://b/x%0Ay",
        "s3://b/x%ff",
        "s3://b/x%",
    ] {
        refused(text, &["prefix"]);
    }
    refused(&format!("s3://b/{}", "x".repeat(1000)), &["prefix of 1000 bytes"]);
    refused(&format!("s3://b/{}", "x".repeat(10_000)), &["bytes long"]);
    for prefix in ["ä ö", "a+b", "a&b=c", "#x", "a\u{1F980}b", "'\"$"] {
        let encoded = address::encode(prefix);
        assert_eq!(s3(&format!("s3://b/{encoded}")).prefix, format!("{prefix}/"));
        assert_eq!(
            s3(&format!("s3://b/{prefix}")).prefix,
            format!("{prefix}/"),
            "not encoded"
        );
    }
}

#[test]
fn endpoints_are_a_scheme_a_host_and_a_port() {
    let kind = |endpoint: &str| s3(&format!("s3://b/?endpoint={endpoint}")).endpoint.expect("set");
    assert_eq!(kind("minio.example:9000"), "https://minio.example:9000");
    assert_eq!(kind("http://[::1]:9000/"), "http://[::1]:9000");
    refused("s3://b/?endpoint=ftp://x", &["http or https"]);
    refused("s3://b/?endpoint=http://", &["http://HOST:PORT"]);
    refused("s3://b/?endpoint=http://h%3Fsig=x", &["http://HOST:PORT"]);
}

#[test]
fn tags_that_no_service_takes_are_refused() {
    let many: Vec<_> = (0..11).map(|n| format!("k{n}=v")).collect();
    refused(&format!("s3://b/?tags={}", many.join(",")), &["11 tags"]);
    refused("s3://b/?tags==v", &["tag \"\""]);
    refused("s3://b/?tags=a=1,a=2", &["twice"]);
    refused(&format!("s3://b/?tags=a={}", "v".repeat(257)), &["256"]);
}

#[test]
fn a_directory_is_opened_behind_meter_and_limits() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let location = Location::Directory(folder.path().join("r"));
    let settings = Settings::default();
    assert!(location.open(&settings).err().expect("missing").is_not_found());
    let made = location.create(&settings).expect("made");
    let id = crate::BlobId::known("p1");
    made.put(&id, b"abc").expect("put");
    let opened = location.open(&settings).expect("opened");
    assert_eq!(opened.get(&id).expect("get"), b"abc");
    assert_eq!(opened.habits(), Habits::LOCAL);
    let stats = settings.meter.stats();
    assert_eq!((stats.operations["put"].bytes, stats.operations["get"].bytes), (3, 3));
    assert_eq!(
        location.create(&settings).err().expect("in use").kind(),
        Kind::AlreadyExists
    );

    // Rates and numbers are shared by clones of the settings.
    let limits = Limits {
        upload: std::num::NonZeroU64::new(1),
        ..Limits::default()
    };
    let settings = Settings {
        throttle: Arc::new(Throttle::new(limits)),
        ..settings
    };
    settings.cancel.cancel();
    let limited = location.open(&settings.clone()).expect("opened");
    limited.put(&id, &[0; 100]).expect("nothing waits after a cancellation");
    assert_eq!(settings.meter.stats().operations["put"].count, 2);
}

#[cfg(feature = "s3")]
#[test]
fn an_s3_location_becomes_the_configuration_of_its_store() {
    use crate::blob::s3::{Checksum, Credentials, ServerEncryption};
    let folder = tempfile::tempdir().expect("temporary directory");
    let key = folder.path().join("key");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&key, [7; 32]).expect("write");
    std::fs::write(&ca, PEM).expect("write");
    let (key, ca) = (key.display(), ca.display());
    let location = s3(&format!(
        "s3://b/x?sseKeyFile={key}&ca={ca}&checksum=md5&tags=a=1&credentials=/c&profile=p&pathStyle=true&region=r&storageClass=C&insecureSkipTlsVerify=true&endpoint=https://e"
    ));
    let config = location.config(&Deadlines::DEFAULT).expect("config");
    assert!(matches!(&config.encryption, ServerEncryption::Customer { key } if key[..] == [7; 32]));
    assert!(
        matches!(&config.credentials, Credentials::Chain { file: Some(file), profile: Some(profile) } if file == Path::new("/c") && profile == "p")
    );
    assert_eq!(
        (config.bucket.as_str(), config.prefix.as_str(), config.region.as_deref()),
        ("b", "x/", Some("r"))
    );
    assert_eq!(
        (config.ca.as_deref(), config.checksum, config.path_style),
        (Some(PEM), Checksum::Md5, Some(true))
    );
    assert_eq!(
        (config.skip_tls_verify, config.storage_class.as_deref()),
        (true, Some("C"))
    );
    assert_eq!(
        (config.tags, config.endpoint),
        (vec![("a".into(), "1".into())], Some("https://e".into()))
    );
    let anonymous = s3("s3://b/?anonymous=true")
        .config(&Deadlines::DEFAULT)
        .expect("config");
    assert!(matches!(anonymous.credentials, Credentials::Anonymous));

    std::fs::write(folder.path().join("key"), [7; 33]).expect("write");
    let error = location.config(&Deadlines::DEFAULT).expect_err("a long key");
    assert!(error.what().contains("33 bytes"), "{error}");
    let error = s3("s3://b/?ca=/nowhere/ca.pem")
        .config(&Deadlines::DEFAULT)
        .expect_err("no file");
    assert_eq!(error.kind(), Kind::InvalidInput);
    assert!(error.what().contains("/nowhere/ca.pem"), "{error}");
}

fn text() -> impl Strategy<Value = String> {
    "[ -~äß\u{1F980}]{1,20}"
}

fn steps() -> impl Strategy<Value = String> {
    let step = "[ -.0-~äß]{1,8}".prop_filter("not a step", |step: &String| !matches!(step.as_str(), "." | ".."));
    proptest::collection::vec(step, 0..4).prop_map(|steps| steps.iter().map(|step| format!("{step}/")).collect())
}

fn endpoints() -> impl Strategy<Value = String> {
    "https?://[a-z0-9.-]{1,20}(:[0-9]{1,5})?"
}

fn s3_location() -> impl Strategy<Value = S3Location> {
    let encryption = prop_oneof![
        Just(Encryption::Bucket),
        Just(Encryption::Service),
        of(text()).prop_map(Encryption::Kms),
        text().prop_map(|path| Encryption::KeyFile(path.into())),
    ];
    let checksum = prop_oneof![
        Just(ChecksumChoice::Auto),
        Just(ChecksumChoice::Md5),
        Just(ChecksumChoice::Crc32c),
        Just(ChecksumChoice::None),
    ];
    let tags = proptest::collection::btree_map(text(), "[ -~ä]{0,20}", 0..4);
    (
        (
            "[a-z0-9][a-z0-9.-]{1,20}",
            steps(),
            of(endpoints()),
            of(text()),
            of(text()),
            of(text()),
        ),
        (
            of(text()),
            any::<bool>(),
            of(any::<bool>()),
            of(text()),
            encryption,
            tags,
            checksum,
        ),
    )
        .prop_map(|(a, b)| S3Location {
            bucket: a.0,
            prefix: a.1,
            endpoint: a.2,
            region: a.3,
            credentials: a.4.map(PathBuf::from),
            profile: a.5,
            anonymous: false,
            ca: b.0.map(|path| Ca::File(path.into())),
            skip_tls_verify: b.1,
            path_style: b.2,
            storage_class: b.3,
            encryption: b.4,
            tags: b.5.into_iter().collect(),
            checksum: b.6,
        })
}

proptest! {
    #[test]
    fn an_address_that_is_written_reads_back_as_the_same(location in s3_location()) {
        let location = Location::S3(location);
        let text = location.to_string();
        prop_assert_eq!(parse(&text).expect("own text"), location, "{}", text);
    }

    #[test]
    fn any_text_is_a_location_or_an_error(text in "((s3|gs|az|file)://)?[ -~]{0,80}", noise in ".{0,80}") {
        for text in [text, format!("s3://b/{noise}"), format!("s3://b/?tags={noise}"), noise] {
            if let Ok(location) = parse(&text) {
                let again = location.to_string();
                if !matches!(location, Location::Directory(_)) {
                    prop_assert_eq!(parse(&again).expect("own text"), location);
                }
            }
        }
    }
}
