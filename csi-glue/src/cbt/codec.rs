//! The codec of the streams: requests as prost writes them, messages left as the bytes they are.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Bytes of one message of a stream.
#[derive(Clone, Debug)]
pub(crate) struct RawPage(pub(crate) Bytes);

/// Writes requests of type `T`, hands pages on without a look at them.
#[derive(Debug)]
pub(crate) struct PageCodec<T>(PhantomData<T>);

impl<T> Default for PageCodec<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + Sync + 'static> Codec for PageCodec<T> {
    type Encode = T;
    type Decode = RawPage;
    type Encoder = RequestEncoder<T>;
    type Decoder = PageDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        RequestEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        PageDecoder
    }
}

/// See [`PageCodec`].
#[derive(Debug)]
pub(crate) struct RequestEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for RequestEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(out)
            .map_err(|e| Status::internal(format!("encode the request: {e}")))
    }
}

/// See [`PageCodec`].
#[derive(Debug)]
pub(crate) struct PageDecoder;

/// A page of 4096 blocks is about 60 KiB; a buffer of that size is not grown for each.
const READ_BUFFER: usize = 64 << 10;

impl Decoder for PageDecoder {
    type Item = RawPage;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<RawPage>, Status> {
        Ok(Some(RawPage(bytes.copy_to_bytes(bytes.remaining()))))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(READ_BUFFER, READ_BUFFER)
    }
}
