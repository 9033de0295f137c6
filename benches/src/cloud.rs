//! The same programs with their repository in a bucket: Garage on loopback, its files in the work folder.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockferry_tests::bucket::Bucket;
use blockferry_tests::garage::Garage;
use blockferry_tests::kopia::Kopia;
use blockferry_tests::process;

use crate::Result;
use crate::measure::{Input, Measured, make_cold, measure_beside};
use crate::site::{PASSWORD, Site};
use crate::tool::Tool;

/// Prefix of the repository in the bucket.
const PREFIX: &str = "volumes/";

/// A server of its own. Its files go when it is dropped: Garage itself frees the space of deleted objects minutes later.
pub struct Cloud {
    garage: Garage,
    bucket: Bucket,
}

impl Cloud {
    /// Starts a server with an empty bucket.
    ///
    /// # Errors
    /// When there is no garage, or it does not start.
    pub fn start(site: &Site) -> Result<Self> {
        let garage = Garage::start_in(&site.dir).map_err(text)?;
        let bucket = Bucket::of(&garage, PREFIX);
        Ok(Self { garage, bucket })
    }

    /// `127.0.0.1:PORT` of the server.
    pub fn address(&self) -> String {
        self.garage.address(0)
    }

    /// Processor seconds of the server so far.
    pub fn cpu_s(&self) -> f64 {
        self.garage.cpu_s()
    }

    /// The place of the repository, by way of `endpoint` when there is one.
    fn place(&self, endpoint: Option<&str>) -> Bucket {
        match endpoint {
            Some(endpoint) => self.bucket.through(endpoint.to_owned()),
            None => self.bucket.clone(),
        }
    }

    /// `blockferry ARGS` on the repository here, by way of `endpoint` when there is one.
    pub fn blockferry(&self, tool: &Tool, site: &Site, endpoint: Option<&str>, args: &[&str]) -> Command {
        let bucket = self.place(endpoint);
        let mut command = tool.command(site);
        command.envs(bucket.environment()).args(args);
        command.args(["--repo", &bucket.url(), "--password-file"]);
        command.arg(&site.password_file);
        command
    }

    /// Creates an empty repository of ours.
    ///
    /// # Errors
    /// When it fails.
    pub fn create(&self, tool: &Tool, site: &Site) -> Result<()> {
        let mut create = self.blockferry(tool, site, None, &["repo", "create"]);
        process::run(&mut create).map(drop).map_err(text)
    }

    /// Our backup of the image.
    pub fn backup(&self, tool: &Tool, site: &Site, endpoint: Option<&str>) -> Command {
        let image = site.image.display().to_string();
        let args = ["backup", &image, "--compression", "none", "--json"];
        self.blockferry(tool, site, endpoint, &args)
    }

    /// Our restore of the newest backup to `target`.
    pub fn restore(&self, tool: &Tool, site: &Site, endpoint: Option<&str>, target: &Path) -> Command {
        let target = target.display().to_string();
        self.blockferry(tool, site, endpoint, &["restore", "latest", &target, "--json"])
    }

    /// A client of kopia that has created its repository here.
    ///
    /// # Errors
    /// When there is no kopia, or it fails.
    pub fn kopia(&self) -> Result<Kopia> {
        let kopia = Kopia::in_bucket(&self.bucket, PASSWORD).map_err(text)?;
        kopia.create(&["--object-splitter=FIXED-1M"]).map_err(text)?;
        Ok(kopia)
    }

    /// `rclone copy`: a plain client that moves the same objects, as many at a time as we do, each in one request.
    pub fn rclone(&self, from: &str, to: &str) -> Command {
        let key = &self.bucket.key;
        let mut rclone = Command::new("rclone");
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
            rclone.env_remove(name);
        }
        rclone.env("RCLONE_CONFIG", "/dev/null").args([
            "copy",
            from,
            to,
            "--s3-provider=Other",
            "--s3-force-path-style",
            "--s3-no-check-bucket",
            // Larger than a pack of ours, so that none is sent in parts.
            "--s3-upload-cutoff=128M",
            "--multi-thread-streams=0",
            "--transfers=8",
            "--no-check-dest",
            "--ignore-checksum",
        ]);
        rclone.args([
            format!("--s3-endpoint={}", self.bucket.endpoint),
            format!("--s3-region={}", self.bucket.region),
        ]);
        // By the environment: the key is in no list of processes.
        rclone
            .env("RCLONE_S3_ACCESS_KEY_ID", &key.id)
            .env("RCLONE_S3_SECRET_ACCESS_KEY", &key.secret);
        rclone
    }

    /// The folder `name` of the bucket, as rclone is told.
    pub fn rclone_place(&self, name: &str) -> String {
        format!(":s3:{}/{name}", self.bucket.bucket)
    }

    /// The place of the repository, as rclone is told.
    pub fn rclone_repository(&self) -> String {
        self.rclone_place(PREFIX)
    }

    /// Measures a command that talks to the server, whose processor time is not that of others, and makes durable what is below
    /// `result`; below the server's own folder when there is none.
    ///
    /// # Errors
    /// When the command fails.
    pub fn measure(&self, command: &mut Command, site: &Site, result: Option<&Path>) -> Result<Measured> {
        let folder = self.garage.folder();
        let servers_s = || self.cpu_s();
        let result = result.unwrap_or(folder);
        let mut measured = measure_beside(command, Input::Nothing, &site.dir, Some(result), &servers_s)?;
        measured.stored_bytes = match result == folder {
            // The files of the server say less: its database grows by steps.
            true => Some(self.stored()?.1),
            false => None,
        };
        Ok(measured)
    }

    /// Objects and bytes in the bucket.
    ///
    /// # Errors
    /// When the server does not tell.
    pub fn stored(&self) -> Result<(u64, u64)> {
        self.garage.bucket_totals(&self.bucket.bucket).map_err(text)
    }

    /// The server's files out of the page cache.
    ///
    /// # Errors
    /// As [`make_cold`].
    pub fn make_cold(&self) -> Result<()> {
        make_cold(self.garage.folder())
    }
}

/// Version of the server, of rclone: what stands in the report beside the tools.
pub fn versions() -> [(String, String); 2] {
    let garage = blockferry_tests::garage::find().unwrap_or_else(|_| PathBuf::from("garage"));
    [
        (
            "garage".to_owned(),
            crate::host::first_line(Command::new(garage).arg("--version")),
        ),
        (
            "rclone".to_owned(),
            crate::host::first_line(Command::new("rclone").arg("version")),
        ),
    ]
}

fn text(failure: blockferry_tests::Failure) -> String {
    failure.to_string()
}
