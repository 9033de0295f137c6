use super::*;

fn bsl(provider: &str, config: &[(&str, &str)]) -> BackupStorageLocation {
    BackupStorageLocation {
        provider: provider.into(),
        config: config
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect(),
        object_storage: Some(ObjectStorage {
            bucket: "velero".into(),
            prefix: "cluster-1".into(),
            ca_cert: None,
        }),
        access_mode: None,
    }
}

fn read(bsl: &BackupStorageLocation) -> FromBsl {
    Location::from_bsl(bsl, "shop", &Secrets::default()).expect("a location")
}

fn s3(config: &[(&str, &str)]) -> (S3Location, Vec<String>) {
    match read(&bsl("aws", config)) {
        FromBsl {
            location: Location::S3(s3),
            warnings,
            ..
        } => (s3, warnings),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(bsl: &BackupStorageLocation, secrets: &Secrets, word: &str) {
    let error = Location::from_bsl(bsl, "shop", secrets).expect_err(word);
    assert!(error.what().contains(word), "no {word:?} in {}", error.what());
}

/// What an S3 location is when `config` is empty.
fn plain() -> S3Location {
    S3Location {
        bucket: "velero".into(),
        prefix: "cluster-1/kopia/shop/".into(),
        ..S3Location::default()
    }
}

/// Every key of the contract, with what follows from it.
#[test]
fn every_key_for_s3_becomes_a_setting_or_is_known_to_be_for_others() {
    type Change = fn(&mut S3Location);
    let nothing: Change = |_| {};
    let table: [(&str, &str, Change); 21] = [
        ("region", "eu-central-1", |s3| s3.region = Some("eu-central-1".into())),
        ("s3Url", "http://minio:9000", |s3| {
            s3.endpoint = Some("http://minio:9000".into())
        }),
        ("s3Url", "https://minio.example/", |s3| {
            s3.endpoint = Some("https://minio.example".into())
        }),
        ("insecureSkipTLSVerify", "true", |s3| s3.skip_tls_verify = true),
        ("insecureSkipTLSVerify", "false", nothing),
        ("profile", "backup", |s3| s3.profile = Some("backup".into())),
        ("s3ForcePathStyle", "true", |s3| s3.path_style = Some(true)),
        ("s3ForcePathStyle", "false", nothing),
        ("serverSideEncryption", "AES256", |s3| {
            s3.encryption = Encryption::Service
        }),
        ("serverSideEncryption", "aws:kms", |s3| {
            s3.encryption = Encryption::Kms(None)
        }),
        ("kmsKeyId", "alias/k", |s3| {
            s3.encryption = Encryption::Kms(Some("alias/k".into()))
        }),
        ("customerKeyEncryptionFile", "/k", |s3| {
            s3.encryption = Encryption::KeyFile("/k".into())
        }),
        ("tagging", "team=a&env=b%26c", |s3| {
            s3.tags = vec![("team".into(), "a".into()), ("env".into(), "b&c".into())];
        }),
        ("checksumAlgorithm", "", |s3| s3.checksum = ChecksumChoice::Md5),
        ("checksumAlgorithm", "CRC32C", |s3| s3.checksum = ChecksumChoice::Crc32c),
        ("storageClass", "STANDARD_IA", |s3| {
            s3.storage_class = Some("STANDARD_IA".into())
        }),
        ("enableSharedConfig", "true", nothing),
        ("publicUrl", "https://minio.example", nothing),
        ("signatureVersion", "4", nothing),
        ("bucket", "other", nothing),
        ("prefix", "other", nothing),
    ];
    for (key, value, change) in table {
        let mut expected = plain();
        change(&mut expected);
        assert_eq!(s3(&[(key, value)]), (expected, vec![]), "{key}={value}");
    }
    let tested = table
        .iter()
        .map(|(key, ..)| *key)
        .chain(["customerKeyEncryptionSecret", "credentialsFile"]);
    let tested: std::collections::BTreeSet<_> = tested.collect();
    let known: std::collections::BTreeSet<_> = S3_KEYS.iter().map(|(key, _)| *key).collect();
    assert_eq!(tested, known, "a key without a row");
}

#[test]
fn a_key_of_ones_own_comes_from_a_file_or_a_secret() {
    let bsl = bsl("aws", &[("customerKeyEncryptionSecret", "sse/key")]);
    refused(&bsl, &Secrets::default(), "sse/key");
    let secrets = Secrets {
        customer_key: Some("/run/key".into()),
        ..Secrets::default()
    };
    let read = Location::from_bsl(&bsl, "shop", &secrets).expect("a location");
    assert!(matches!(read.location, Location::S3(s3) if s3.encryption == Encryption::KeyFile("/run/key".into())));
}

#[test]
fn what_is_passed_over_is_told() {
    let (location, warnings) = s3(&[
        ("credentialsFile", "/etc/shadow"),
        ("regoin", "x"),
        ("checksumAlgorithm", "SHA256"),
    ]);
    assert_eq!(location, plain(), "a path from outside is not followed");
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for (word, warning) in ["config.credentialsFile", "config.regoin", "SHA256"]
        .iter()
        .zip(&warnings)
    {
        assert!(warning.contains(word), "{warning}");
    }
}

#[test]
fn values_that_cannot_be_used_are_refused() {
    let none = Secrets::default();
    for (key, value, word) in [
        ("insecureSkipTLSVerify", "yes", "insecureSkipTLSVerify"),
        ("s3Url", "http://minio/path", "has a path"),
        ("s3Url", "ftp://minio", "s3Url"),
        ("serverSideEncryption", "rot13", "rot13"),
        ("tagging", "a=1&a=2", "twice"),
    ] {
        refused(&bsl("aws", &[(key, value)]), &none, word);
    }
    refused(
        &bsl("aws", &[("kmsKeyId", "k"), ("customerKeyEncryptionFile", "/k")]),
        &none,
        "exclude each other",
    );
    let mut wrong = bsl("aws", &[]);
    wrong.access_mode = Some("WriteOnly".into());
    refused(&wrong, &none, "WriteOnly");
    wrong = bsl("aws", &[]);
    wrong.object_storage = None;
    refused(&wrong, &none, "bucket is missing");
    refused(&bsl("fs", &[]), &none, "fspath");
    for namespace in ["", "a/b", "..", "A"] {
        assert!(
            Location::from_bsl(&bsl("aws", &[]), namespace, &none).is_err(),
            "{namespace}"
        );
    }
}

#[test]
fn providers_lead_to_their_stores() {
    for provider in ["aws", "velero.io/aws"] {
        assert!(
            matches!(read(&bsl(provider, &[])).location, Location::S3(_)),
            "{provider}"
        );
    }
    let other = read(&bsl("example.com/minio", &[("s3Url", "http://minio:9000")]));
    assert!(matches!(other.location, Location::S3(_)));
    let error = Location::from_bsl(&bsl("example.com/minio", &[]), "shop", &Secrets::default()).expect_err("unknown");
    assert_eq!(error.kind(), Kind::Unsupported);

    let secrets = Secrets {
        credentials: Some("/run/cloud".into()),
        ..Secrets::default()
    };
    let read = |bsl| Location::from_bsl(&bsl, "shop", &secrets).expect("a location");
    let gcs = read(bsl(
        "velero.io/gcp",
        &[
            ("kmsKeyName", "k"),
            ("serviceAccount", "s"),
            ("storeEndpoint", "http://e"),
        ],
    ));
    let expected = GcsLocation {
        bucket: "velero".into(),
        prefix: "cluster-1/kopia/shop/".into(),
        credentials: Some("/run/cloud".into()),
        endpoint: Some("http://e".into()),
        kms_key: Some("k".into()),
        ..GcsLocation::default()
    };
    assert_eq!((gcs.location, gcs.warnings), (Location::Gcs(expected), vec![]));
    let azure = read(bsl(
        "azure",
        &[("storageAccount", "acc"), ("resourceGroup", "g"), ("useAAD", "true")],
    ));
    let expected = AzureLocation {
        container: "velero".into(),
        prefix: "cluster-1/kopia/shop/".into(),
        account: Some("acc".into()),
        credentials: Some("/run/cloud".into()),
        ..AzureLocation::default()
    };
    assert_eq!((azure.location, azure.warnings), (Location::Azure(expected), vec![]));
    let fs = read(bsl("velero.io/fs", &[("fspath", "/mnt/backups")]));
    assert_eq!(
        fs.location,
        Location::Directory("/mnt/backups/cluster-1/kopia/shop/".into())
    );
}

#[test]
fn prefix_and_bucket_follow_velero() {
    let mut bsl = bsl("aws", &[("bucket", "b2"), ("prefix", "p2")]);
    let place = |bsl: &BackupStorageLocation| match read(bsl).location {
        Location::S3(s3) => (s3.bucket, s3.prefix),
        other => panic!("{other:?}"),
    };
    for (prefix, expected) in [
        ("", "kopia/shop/"),
        ("a/", "a/kopia/shop/"),
        ("/a/b", "a/b/kopia/shop/"),
    ] {
        bsl.object_storage.as_mut().expect("set").prefix = prefix.into();
        assert_eq!(place(&bsl), ("velero".into(), expected.into()));
    }
    bsl.object_storage = None;
    assert_eq!(place(&bsl), ("b2".into(), "p2/kopia/shop/".into()));
}

#[test]
fn a_ca_comes_from_the_location_or_a_secret_but_not_from_both() {
    let mut bsl = bsl("aws", &[]);
    let secrets = Secrets {
        ca: Some(b"SECRET PEM".to_vec()),
        ..Secrets::default()
    };
    let ca = |bsl: &BackupStorageLocation, secrets: &Secrets| match Location::from_bsl(bsl, "shop", secrets)
        .expect("a location")
        .location
    {
        Location::S3(s3) => s3.ca,
        other => panic!("{other:?}"),
    };
    assert_eq!(ca(&bsl, &secrets), Some(Ca::Pem(b"SECRET PEM".to_vec())));
    bsl.object_storage.as_mut().expect("set").ca_cert = Some("UEVN".into());
    assert_eq!(ca(&bsl, &Secrets::default()), Some(Ca::Pem(b"PEM".to_vec())));
    refused(&bsl, &secrets, "exclude each other");
    bsl.object_storage.as_mut().expect("set").ca_cert = Some("-----BEGIN".into());
    refused(&bsl, &Secrets::default(), "base64");
}

#[test]
fn a_location_is_read_from_the_clusters_json() {
    let text = r#"{"provider":"aws","default":true,"accessMode":"ReadOnly","backupSyncPeriod":"1m",
        "credential":{"name":"cloud","key":"k"},"config":{"region":"garage","s3Url":"http://garage:3900"},
        "objectStorage":{"bucket":"velero","prefix":"p","caCertRef":{"name":"ca","key":"k"}}}"#;
    let bsl: BackupStorageLocation = serde_json::from_str(text).expect("a spec");
    let read = read(&bsl);
    assert!(read.read_only);
    assert_eq!(
        read.location.to_string(),
        "s3://velero/p/kopia/shop/?endpoint=http://garage:3900&region=garage"
    );
}
