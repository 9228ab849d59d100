//! Compressed bodies piece by piece, none of them large, however much a body swells.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::{GzDecoder, ZlibDecoder};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

use super::Coding;
use crate::api::error::ApiError;

/// The largest window that a zstd frame may ask for, as a power of two (RFC 9659).
const WINDOW_LOG: u32 = 23;
/// Room for what one block of a zstd frame unpacks to.
const BLOCK: usize = 128 << 10;

/// Why a compressed body cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[error("the body is not the {coding} that its headers say: {what}")]
pub struct Corrupt {
    coding: &'static str,
    what: String,
}

impl From<Corrupt> for ApiError {
    fn from(corrupt: Corrupt) -> Self {
        Self::invalid(corrupt.to_string())
    }
}

/// Unpacks a body as its parts come in.
pub struct Unpacker {
    coding: Coding,
    decoder: Decoder,
}

enum Decoder {
    Gzip(GzDecoder<Vec<u8>>),
    Deflate(ZlibDecoder<Vec<u8>>),
    Zstd(Frame),
}

impl Unpacker {
    pub fn new(coding: Coding) -> Self {
        let decoder = match coding {
            Coding::Gzip => Decoder::Gzip(GzDecoder::new(Vec::new())),
            Coding::Deflate => Decoder::Deflate(ZlibDecoder::new(Vec::new())),
            Coding::Zstd => Decoder::Zstd(Frame::default()),
        };
        Self { coding, decoder }
    }

    /// Takes some bytes off the front of `packed`; what they unpack to is a few ten thousand bytes at most.
    pub fn unpack(&mut self, packed: &mut Bytes) -> Result<Bytes, Corrupt> {
        let taken = match &mut self.decoder {
            Decoder::Gzip(decoder) => decoder.write(packed),
            Decoder::Deflate(decoder) => decoder.write(packed),
            Decoder::Zstd(frame) => frame.write(packed),
        };
        match taken {
            Ok(0) if !packed.is_empty() => Err(self.corrupt("something follows its end")),
            Ok(taken) => {
                let _ = packed.split_to(taken);
                Ok(self.output())
            }
            Err(error) => Err(self.corrupt(error)),
        }
    }

    /// The last bytes, once all was taken in.
    pub fn finish(&mut self) -> Result<Bytes, Corrupt> {
        let finished = match &mut self.decoder {
            Decoder::Gzip(decoder) => decoder.try_finish(),
            Decoder::Deflate(decoder) => decoder.try_finish(),
            Decoder::Zstd(frame) => frame.try_finish(),
        };
        match finished {
            Ok(()) => Ok(self.output()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.corrupt("it ends too early"))
            }
            Err(error) => Err(self.corrupt(error)),
        }
    }

    fn output(&mut self) -> Bytes {
        let output = match &mut self.decoder {
            Decoder::Gzip(decoder) => decoder.get_mut(),
            Decoder::Deflate(decoder) => decoder.get_mut(),
            Decoder::Zstd(frame) => &mut frame.output,
        };
        std::mem::take(output).into()
    }

    fn corrupt(&self, what: impl ToString) -> Corrupt {
        Corrupt {
            coding: self.coding.name(),
            what: what.to_string(),
        }
    }
}

/// One zstd frame.
#[derive(Default)]
struct Frame {
    decoder: Option<ZstdDecoder<'static>>,
    ended: bool,
    output: Vec<u8>,
}

impl Frame {
    /// Takes some bytes off the front of `packed`; none once the frame has ended.
    fn write(&mut self, packed: &[u8]) -> io::Result<usize> {
        let mut packed = InBuffer::around(packed);
        while packed.pos() == 0 && !self.ended {
            self.run(&mut packed)?;
        }
        Ok(packed.pos())
    }

    fn try_finish(&mut self) -> io::Result<()> {
        while !self.ended {
            let begun = self.output.len();
            self.run(&mut InBuffer::around(&[]))?;
            if self.output.len() == begun {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    fn run(&mut self, packed: &mut InBuffer<'_>) -> io::Result<()> {
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => {
                let mut decoder = ZstdDecoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
                none.insert(decoder)
            }
        };
        self.output.reserve(BLOCK);
        let begun = self.output.len();
        let mut output = OutBuffer::around_pos(&mut self.output, begun);
        self.ended = decoder.run(packed, &mut output)? == 0;
        Ok(())
    }
}
