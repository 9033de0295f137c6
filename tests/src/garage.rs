//! The real Garage, an S3 server, on loopback: one node or three, each test with servers of its own.
//!
//! A node is up in a fraction of a second; its files lie in a temporary folder that goes with it. Garage is licensed under the
//! AGPL: it is a program the tests talk to, nothing of it is linked or shipped.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::wait::wait_for;
use crate::{Failure, Result, process};

/// Release the tests are written against.
pub const VERSION: &str = "2.5.0";

/// Region of every server here. Requests signed for another are refused.
pub const REGION: &str = "garage";

/// Bucket that every server has from the start.
pub const BUCKET: &str = "backups";

/// Most time for a start or for a cluster to get well: a hundred times what it takes on an idle machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Starts that are tried when another program takes a port between our choice and the server's use of it.
const STARTS_MAX: usize = 5;

/// Secret between the nodes of a cluster, the same everywhere: they listen on loopback only.
const RPC_SECRET: &str = "b10cb10cb10cb10cb10cb10cb10cb10cb10cb10cb10cb10cb10cb10cb10cb10c";

/// Token of the admin interface.
const ADMIN_TOKEN: &str = "loopback-only";

/// Capacity a node claims, in bytes. Only the share among nodes follows from it.
const CAPACITY: u64 = 100 << 30;

/// Whether tests may use Garage. False only outside CI, when `cargo xtask test` could not get one and said so; then the test
/// returns at once. In any other case a missing Garage fails the test.
pub fn available() -> bool {
    let ci = env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0");
    let skip = !ci && env::var_os("BLOCKFERRY_NO_GARAGE").is_some();
    if skip {
        eprintln!("SKIPPED: needs the real garage");
    }
    !skip
}

/// Where the garage program is: on PATH or in cargo's bin folder.
///
/// # Errors
/// Says how to get it when there is none.
pub fn find() -> Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let bins: Vec<PathBuf> = home.iter().map(|home| home.join("bin")).collect();
    process::find("garage", &bins).ok_or_else(|| {
        Failure::new(
            "no garage on PATH or in cargo's bin folder; `cargo xtask test` and `cargo xtask peers` install it",
        )
    })
}

/// An access key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// `AWS_ACCESS_KEY_ID`.
    pub id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret: String,
}

/// What a key may do with a bucket. Garage knows no finer rights: who may read may list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Get and list.
    pub read: bool,
    /// Put and delete.
    pub write: bool,
}

impl Rights {
    /// Everything a backup needs.
    pub const FULL: Self = Self {
        read: true,
        write: true,
    };
    /// Enough to restore.
    pub const READ_ONLY: Self = Self {
        read: true,
        write: false,
    };
    /// Neither get nor list.
    pub const WRITE_ONLY: Self = Self {
        read: false,
        write: true,
    };
    /// A key that the server knows and the bucket does not.
    pub const NONE: Self = Self {
        read: false,
        write: false,
    };
}

/// A running Garage with the bucket [`BUCKET`] and a key that may do everything in it. Killed when dropped.
#[derive(Debug)]
pub struct Garage {
    nodes: Vec<Node>,
    key: Key,
    folder: TempDir,
}

/// One server process.
#[derive(Debug)]
struct Node {
    config: PathBuf,
    log: PathBuf,
    s3_port: u16,
    rpc_port: u16,
    admin_port: u16,
    child: Option<Child>,
}

impl Garage {
    /// One node.
    ///
    /// # Errors
    /// When there is no garage, or it does not start; with what it logged.
    pub fn start() -> Result<Self> {
        Self::start_nodes(1, &env::temp_dir())
    }

    /// One node whose files lie below `folder`, on the disk that is to be measured.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(folder: &Path) -> Result<Self> {
        Self::start_nodes(1, folder)
    }

    /// Three nodes with three copies of everything: one may die, and two answer on.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_three() -> Result<Self> {
        Self::start_nodes(3, &env::temp_dir())
    }

    fn start_nodes(count: usize, place: &Path) -> Result<Self> {
        let program = find()?;
        let folder = tempfile::tempdir_in(place).map_err(Failure::at("create folder for garage"))?;
        let mut nodes = Vec::with_capacity(count);
        for index in 0..count {
            nodes.push(Node::start_anew(
                &program,
                &folder.path().join(index.to_string()),
                count,
            )?);
        }
        let mut garage = Self {
            nodes,
            key: Key {
                id: String::new(),
                secret: String::new(),
            },
            folder,
        };
        if count > 1 {
            garage.join()?;
        }
        garage.wait_until_healthy()?;
        garage.create_bucket(BUCKET)?;
        garage.key = garage.create_key(BUCKET, Rights::FULL)?;
        Ok(garage)
    }

    /// Makes one cluster of the nodes, each a zone of its own.
    fn join(&self) -> Result<()> {
        let ids: Vec<String> = self.nodes.iter().map(Node::id).collect::<Result<_>>()?;
        // Each gets to know all others now: by themselves they would only after some seconds, too late when the first dies.
        for node in &self.nodes {
            let others: Vec<&String> = ids.iter().filter(|id| !id.ends_with(&node.rpc_address())).collect();
            let connected = node.admin("ConnectClusterNodes", &json!(others))?;
            let connects = |results: &Vec<Value>| results.iter().all(|result| result["success"] == true);
            if !connected.as_array().is_some_and(connects) {
                return Err(Failure::new(format!("garage nodes do not connect: {connected}")));
            }
        }
        let roles: Vec<Value> = ids
            .iter()
            .filter_map(|id| id.split_once('@'))
            .enumerate()
            .map(|(zone, (id, _))| json!({"id": id, "zone": format!("z{zone}"), "capacity": CAPACITY, "tags": []}))
            .collect();
        self.admin("UpdateClusterLayout", &json!({ "roles": roles }))?;
        self.admin("ApplyClusterLayout", &json!({"version": 1})).map(drop)
    }

    /// `http://127.0.0.1:PORT` of the first node.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address(0))
    }

    /// `127.0.0.1:PORT` of the S3 interface of a node.
    pub fn address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[node].s3_port)
    }

    /// Where all its files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The key that may do everything in [`BUCKET`].
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Creates a bucket, which no key may use yet.
    ///
    /// # Errors
    /// When Garage refuses.
    pub fn create_bucket(&self, name: &str) -> Result<()> {
        self.admin("CreateBucket", &json!({"globalAlias": name})).map(drop)
    }

    /// Creates a key with `rights` in `bucket`.
    ///
    /// # Errors
    /// When Garage refuses.
    pub fn create_key(&self, bucket: &str, rights: Rights) -> Result<Key> {
        let key = self.admin("CreateKey", &json!({"name": "test"}))?;
        let text = |name: &str| {
            let value = key[name].as_str().map(str::to_owned);
            value.ok_or_else(|| Failure::new(format!("garage made a key without {name}")))
        };
        let key = Key {
            id: text("accessKeyId")?,
            secret: text("secretAccessKey")?,
        };
        let bucket = self.admin("GetBucketInfo", &json!({"globalAlias": bucket}))?;
        self.admin(
            "AllowBucketKey",
            &json!({
                "bucketId": bucket["id"], "accessKeyId": key.id,
                "permissions": {"read": rights.read, "write": rights.write, "owner": false},
            }),
        )?;
        Ok(key)
    }

    /// Objects in a bucket and their bytes, as Garage counts them.
    ///
    /// # Errors
    /// When Garage refuses.
    pub fn bucket_totals(&self, bucket: &str) -> Result<(u64, u64)> {
        let info = self.admin("GetBucketInfo", &json!({"globalAlias": bucket}))?;
        let number = |name: &str| {
            let value = info[name].as_u64();
            value.ok_or_else(|| Failure::new(format!("garage tells no {name} of a bucket: {info}")))
        };
        Ok((number("objects")?, number("bytes")?))
    }

    /// Processor seconds all nodes have used so far, in user mode and in the kernel. What dead ones used is not in it.
    pub fn cpu_s(&self) -> f64 {
        let pids = self.nodes.iter().filter_map(|node| Some(node.child.as_ref()?.id()));
        pids.map(process::cpu_s).sum()
    }

    /// Kills a node as a power cut does.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts a killed node again, with its data, and returns when the cluster is whole.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self, node: usize) -> Result<()> {
        let program = find()?;
        let single = self.nodes.len() == 1;
        self.nodes[node].launch(&program, single)?;
        self.wait_until_healthy()
    }

    /// Waits until all nodes see each other and every partition has all its copies.
    ///
    /// # Errors
    /// When that does not happen within a minute.
    pub fn wait_until_healthy(&self) -> Result<()> {
        let count = self.nodes.len();
        let well = |node: &Node| {
            node.admin("GetClusterHealth", &Value::Null)
                .is_ok_and(|health| health["status"] == "healthy" && health["storageNodesUp"] == count)
        };
        wait_for("a healthy garage", DEADLINE, || self.nodes.iter().all(well))
            .map_err(|failure| Failure::new(format!("{failure}\n{}", self.nodes[0].log_tail())))
    }

    /// Asks the admin interface of the first node that runs.
    ///
    /// # Errors
    /// When Garage refuses, with its reason.
    pub fn admin(&self, call: &str, payload: &Value) -> Result<Value> {
        let node = self.nodes.iter().find(|node| node.child.is_some());
        node.ok_or_else(|| Failure::new("no garage node runs"))?
            .admin(call, payload)
    }
}

impl Node {
    /// Starts a node in the folder, which is created, on ports that are free.
    fn start_anew(program: &Path, folder: &Path, copies: usize) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Failure::at("create folder for garage"))?;
        let mut last = Failure::new("garage was not started");
        for _ in 0..STARTS_MAX {
            let [s3_port, rpc_port, admin_port] = free_ports()?;
            let mut node = Self {
                config: folder.join("garage.toml"),
                log: folder.join("log"),
                s3_port,
                rpc_port,
                admin_port,
                child: None,
            };
            let place = folder.display();
            // Files are not synced: no test cuts the power of the machine. Lmdb because it is the default, and in C that builds
            // everywhere.
            let config = format!(
                "metadata_dir = \"{place}/meta\"\ndata_dir = \"{place}/data\"\ndb_engine = \"lmdb\"\n\
                 metadata_fsync = false\ndata_fsync = false\nreplication_factor = {copies}\n\
                 rpc_bind_addr = \"127.0.0.1:{rpc_port}\"\nrpc_public_addr = \"127.0.0.1:{rpc_port}\"\nrpc_secret = \"{RPC_SECRET}\"\n\
                 compression_level = \"none\"\n\
                 [s3_api]\ns3_region = \"{REGION}\"\napi_bind_addr = \"127.0.0.1:{s3_port}\"\n\
                 [admin]\napi_bind_addr = \"127.0.0.1:{admin_port}\"\nadmin_token = \"{ADMIN_TOKEN}\"\n"
            );
            fs::write(&node.config, config).map_err(Failure::at("write garage's configuration"))?;
            match node.launch(program, copies == 1) {
                Ok(()) => return Ok(node),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    /// Starts the process and returns when its admin interface answers.
    fn launch(&mut self, program: &Path, single: bool) -> Result<()> {
        let log = File::create(&self.log).map_err(Failure::at("create garage's log"))?;
        let mut command = self.command(program);
        command.arg("server").env("RUST_LOG", "garage=info,netapp=warn");
        if single {
            command.arg("--single-node");
        }
        let stderr = log.try_clone().map_err(Failure::at("open garage's log"))?;
        command.stdin(Stdio::null()).stdout(log).stderr(stderr);
        let mut child = command.spawn().map_err(Failure::at("start garage"))?;
        let mut ended = None;
        let (s3, admin) = (self.s3_port, self.admin_port);
        let up = wait_for("garage to listen", DEADLINE, || {
            ended = child.try_wait().ok().flatten();
            ended.is_some() || (answers(admin) && answers(s3))
        });
        self.child = Some(child);
        match (up, ended) {
            (Ok(()), None) => Ok(()),
            (up, ended) => {
                self.kill();
                let why = ended.map_or_else(|| format!("{up:?}"), |status| status.to_string());
                Err(Failure::new(format!(
                    "garage does not start: {why}\n{}",
                    self.log_tail()
                )))
            }
        }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GARAGE_")) {
            command.env_remove(name);
        }
        command.env("GARAGE_CONFIG_FILE", &self.config);
        command
    }

    fn admin(&self, call: &str, payload: &Value) -> Result<Value> {
        let mut command = self.command(&find()?);
        command.args(["json-api", call]);
        if !payload.is_null() {
            command.arg(payload.to_string());
        }
        let text = process::run(&mut command)?;
        serde_json::from_str(&text).map_err(Failure::at(format!("garage printed `{text}`")))
    }

    fn rpc_address(&self) -> String {
        format!("@127.0.0.1:{}", self.rpc_port)
    }

    /// `<public key>@127.0.0.1:PORT`.
    fn id(&self) -> Result<String> {
        let text = process::run(self.command(&find()?).args(["node", "id", "--quiet"]))?;
        let id = text.split_whitespace().next().map(str::to_owned);
        id.filter(|id| id.ends_with(&self.rpc_address()))
            .ok_or_else(|| Failure::new(format!("garage has no node id: {text}")))
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill(); // it may have ended by itself
            let _ = child.wait();
        }
    }

    fn log_tail(&self) -> String {
        const LINES: usize = 20;
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three ports of loopback that nobody listens on at the moment.
fn free_ports() -> Result<[u16; 3]> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let ports = || -> std::io::Result<[u16; 3]> {
        // All three are held until all are known, so they differ.
        let held = [bind()?, bind()?, bind()?];
        let port = |at: usize| held[at].local_addr().map(|address| address.port());
        Ok([port(0)?, port(1)?, port(2)?])
    };
    ports().map_err(Failure::at("find free ports"))
}

/// Whether an HTTP server answers at this port of loopback, whatever it says.
fn answers(port: u16) -> bool {
    let ask = || -> std::io::Result<usize> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        stream.read(&mut [0; 5])
    };
    ask().is_ok_and(|len| len > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_node_has_a_bucket_and_keys() {
        if !available() {
            return;
        }
        let garage = Garage::start().unwrap();
        assert_eq!(garage.bucket_totals(BUCKET).unwrap(), (0, 0));
        assert!(garage.key().id.starts_with("GK"));
        let other = garage.create_key(BUCKET, Rights::READ_ONLY).unwrap();
        assert_ne!(&other, garage.key());
        let again = garage.create_bucket(BUCKET).unwrap_err().to_string();
        assert!(again.contains("CreateBucket"), "{again}");
        let port = garage.nodes[0].s3_port;
        assert!(answers(port));
        drop(garage);
        assert!(!answers(port), "dropped and still there");
    }

    #[test]
    fn a_cluster_loses_a_node_and_gets_it_back() {
        if !available() {
            return;
        }
        let mut garage = Garage::start_three().unwrap();
        garage.kill(0);
        assert!(!answers(garage.nodes[0].s3_port));
        let health = garage.admin("GetClusterHealth", &Value::Null).unwrap();
        assert_eq!(health["storageNodes"], 3);
        garage.create_bucket("made-by-two").unwrap();
        garage.restart(0).unwrap();
        assert_eq!(garage.bucket_totals("made-by-two").unwrap(), (0, 0));
    }
}
