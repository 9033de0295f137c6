//! The machine on a network.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use blockio::{Cancel, GrowingMap, SnapshotHandle};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use super::codec::RawPage;
use super::connect::{self, Failure, Target};
use super::limits::Limits;
use super::machine::{Action, Call, End, Machine, Outcome};
use super::proto::{driver, sidecar};
use super::refusal::Refusal;
use super::token::{Need, Token, TokenSource};

/// How long a request to stop waits at most for a look.
const CANCEL_LOOK: Duration = Duration::from_millis(50);

/// Texts of services end here: an error goes into logs, tags and status.
const TEXT_CHARS_MAX: usize = 500;

/// A sidecar, as the SnapshotMetadataService object of its driver tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CbtEndpoint {
    /// `host:port`; the certificate has to be for this host.
    pub address: String,
    /// The authorities that may have signed it, PEM. No other is believed.
    pub ca_pem: Vec<u8>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Namespace of the VolumeSnapshot. Not used on the socket of a driver.
    pub namespace: String,
    /// Name of the VolumeSnapshot; on the socket of a driver the handle of the snapshot.
    pub snapshot: String,
    /// What to compare with; nothing asks for the allocated blocks.
    pub base: Option<SnapshotHandle>,
}

impl Question {
    /// Which of the two calls this is.
    pub fn call(&self) -> Call {
        match self.base {
            None => Call::Allocated,
            Some(_) => Call::Delta,
        }
    }
}

/// A client of one SnapshotMetadata service.
#[derive(Clone)]
pub struct CbtClient {
    target: Target,
    tokens: Option<Arc<dyn TokenSource>>,
    limits: Limits,
}

impl CbtClient {
    /// A client of a sidecar.
    ///
    /// # Errors
    /// [`Refusal::Setting`] when address or authority are none.
    pub fn sidecar(endpoint: &CbtEndpoint, tokens: Arc<dyn TokenSource>, limits: Limits) -> Result<Self, Refusal> {
        Ok(Self {
            target: Target::tls(&endpoint.address, &endpoint.ca_pem)?,
            tokens: Some(tokens),
            limits,
        })
    }

    /// A client of a CSI driver on its own socket, where nobody asks for tokens.
    pub fn driver(socket: &Path, limits: Limits) -> Self {
        Self {
            target: Target::unix(socket),
            tokens: None,
            limits,
        }
    }

    /// Asks, and adds what is answered to `map`, which is finished or failed in the end.
    ///
    /// # Errors
    /// A [`Refusal`]. What `map` holds then is true as far as it goes.
    pub async fn ask(&self, question: &Question, map: &GrowingMap, cancel: &Cancel) -> Result<Outcome, Refusal> {
        let run = Run {
            client: self,
            question,
            map,
            cancel,
            started: Instant::now(),
        };
        let asked = run.ask().await;
        if asked.is_err() {
            map.fail();
        }
        asked
    }

    /// [`Self::ask`] on the calling thread, which must not be one of an asynchronous runtime.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn ask_blocking(&self, question: &Question, map: &GrowingMap, cancel: &Cancel) -> Result<Outcome, Refusal> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => {
                let answer = runtime.block_on(self.ask(question, map, cancel));
                runtime.shutdown_background(); // a look-up of a host name may still run, and cannot be stopped
                answer
            }
            Err(e) => {
                map.fail();
                Err(Refusal::Setting(format!("start a runtime: {e}")))
            }
        }
    }
}

/// One question on its way.
struct Run<'a> {
    client: &'a CbtClient,
    question: &'a Question,
    map: &'a GrowingMap,
    cancel: &'a Cancel,
    started: Instant,
}

impl Run<'_> {
    async fn ask(&self) -> Result<Outcome, Refusal> {
        let mut machine = Machine::new(self.question.call(), self.map.size(), self.client.limits, seed());
        let mut action = machine.start();
        loop {
            let (offset, need, wait) = match action {
                Action::Done(outcome) => return Ok(outcome),
                Action::Open { offset, token, wait } => (offset, token, wait),
            };
            if !wait.is_zero() {
                let until = self.started.elapsed() + wait;
                self.watched(until, std::future::pending::<()>()).await?;
            }
            machine.opening(self.started.elapsed());
            let end = self.stream(&mut machine, offset, need).await?;
            if end != End::Clean {
                tracing::info!(offset, ?end, "a stream of changed blocks ended early");
            }
            let now = self.started.elapsed();
            action = self.map.grow(|map| machine.ended(now, end, map))?;
        }
    }

    /// Opens one stream and reads it to its end.
    async fn stream(&self, machine: &mut Machine, offset: u64, need: Need) -> Result<End, Refusal> {
        let token = match &self.client.tokens {
            None => None,
            Some(tokens) => match self.watched(machine.silent_at(), tokens.token(need)).await? {
                None => return Err(Refusal::NoToken("none came".into())),
                Some(token) => Some(token.map_err(|e| Refusal::NoToken(e.0))?),
            },
        };
        let channel = match self.watched(machine.silent_at(), self.client.target.connect()).await? {
            None => return Ok(End::Silence),
            Some(Ok(channel)) => channel,
            Some(Err(Failure::Passing(text))) => return Ok(End::Connection(shortened(&text))),
            Some(Err(Failure::Untrusted(text))) => return Err(Refusal::Tls(shortened(&text))),
        };
        let opening = self.open(channel, token.as_ref(), offset)?;
        let mut stream = match self.watched(machine.silent_at(), opening).await? {
            None => return Ok(End::Silence),
            Some(Ok(response)) => response.into_inner(),
            Some(Err(status)) => return ended(&status),
        };
        loop {
            match self.watched(machine.silent_at(), stream.message()).await? {
                None => return Ok(End::Silence),
                Some(Ok(Some(RawPage(bytes)))) => {
                    let now = self.started.elapsed();
                    self.map.grow(|map| machine.message(now, &bytes, map))?;
                }
                Some(Ok(None)) => return Ok(End::Clean),
                Some(Err(status)) => return ended(&status),
            }
        }
    }

    /// The call that fits question and service.
    fn open(
        &self,
        channel: Channel,
        token: Option<&Token>,
        offset: u64,
    ) -> Result<impl Future<Output = Result<Response<Streaming<RawPage>>, Status>> + Send + use<>, Refusal> {
        let starting_offset = i64::try_from(offset).map_err(|_| Refusal::Setting(format!("offset {offset}")))?;
        let Limits {
            results_max: max_results,
            message_bytes_max,
            ..
        } = self.client.limits;
        let question = self.question.clone();
        let security_token = token.map(|token| token.expose().to_owned());
        Ok(async move {
            let base = question.base.map(|base| base.to_string());
            match (security_token, base) {
                (Some(security_token), None) => {
                    let request = sidecar::GetMetadataAllocatedRequest {
                        security_token,
                        namespace: question.namespace,
                        snapshot_name: question.snapshot,
                        starting_offset,
                        max_results,
                    };
                    let client = sidecar::snapshot_metadata_client::SnapshotMetadataClient::new(channel);
                    let mut client = client.max_decoding_message_size(message_bytes_max);
                    client.get_metadata_allocated(Request::new(request)).await
                }
                (Some(security_token), Some(base_snapshot_id)) => {
                    let request = sidecar::GetMetadataDeltaRequest {
                        security_token,
                        namespace: question.namespace,
                        base_snapshot_id,
                        target_snapshot_name: question.snapshot,
                        starting_offset,
                        max_results,
                    };
                    let client = sidecar::snapshot_metadata_client::SnapshotMetadataClient::new(channel);
                    let mut client = client.max_decoding_message_size(message_bytes_max);
                    client.get_metadata_delta(Request::new(request)).await
                }
                (None, None) => {
                    let request = driver::GetMetadataAllocatedRequest {
                        snapshot_id: question.snapshot,
                        starting_offset,
                        max_results,
                    };
                    let client = driver::snapshot_metadata_client::SnapshotMetadataClient::new(channel);
                    let mut client = client.max_decoding_message_size(message_bytes_max);
                    client.get_metadata_allocated(Request::new(request)).await
                }
                (None, Some(base_snapshot_id)) => {
                    let request = driver::GetMetadataDeltaRequest {
                        base_snapshot_id,
                        target_snapshot_id: question.snapshot,
                        starting_offset,
                        max_results,
                    };
                    let client = driver::snapshot_metadata_client::SnapshotMetadataClient::new(channel);
                    let mut client = client.max_decoding_message_size(message_bytes_max);
                    client.get_metadata_delta(Request::new(request)).await
                }
            }
        })
    }

    /// `future`, or nothing when `until` has passed.
    async fn watched<F: Future>(&self, until: Duration, future: F) -> Result<Option<F::Output>, Refusal> {
        let mut future = std::pin::pin!(future);
        loop {
            self.cancel.check().map_err(|_| Refusal::Cancelled)?;
            let left = until.saturating_sub(self.started.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            if let Ok(output) = timeout(left.min(CANCEL_LOOK), future.as_mut()).await {
                return Ok(Some(output));
            }
        }
    }
}

/// What the library below says of a message larger than [`Limits::message_bytes_max`]. It uses a status of the contract for it.
const TOO_LARGE: &str = "Error, decoded message length too large";

fn ended(status: &Status) -> Result<End, Refusal> {
    let (code, said) = (status.code(), status.message());
    // What a service says has no cause; what the connection says often is only the cause.
    let text = match std::error::Error::source(status) {
        None => shortened(said),
        Some(cause) => shortened(&format!("{said}: {}", connect::chain(cause))),
    };
    match code == Code::OutOfRange && said.starts_with(TOO_LARGE) {
        true => Err(Refusal::Other { code, text }),
        false => Ok(End::Status(code, text)),
    }
}

/// What a service says, without control characters and not endless.
fn shortened(text: &str) -> String {
    let visible = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    visible.take(TEXT_CHARS_MAX).collect()
}

/// Something that differs between clients.
fn seed() -> u64 {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanos = time.map_or(0, |time| u64::from(time.subsec_nanos()));
    nanos << 20 ^ u64::from(std::process::id())
}
