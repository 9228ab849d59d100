//! Where a connection stands: waiting, sending a request's headers, or being answered.
//!
//! One [`Pulse`] is shared by the stream (which sees bytes arrive), the service (which sees requests begin
//! and end) and the connection's watchdog, so that a slow header and an idle connection each have a limit
//! of their own at the price of two clock readings per request. Bodies and answers have their own limits.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Time a connection may spend in each state.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub header: Duration,
    pub idle: Duration,
}

/// The state, and since when: two bits and microseconds in one word.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    state: AtomicU64,
}

const IDLE: u64 = 0;
const HEADER: u64 = 1;
const BUSY: u64 = 2;

/// What the watchdog is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Look again then.
    Later(Duration),
    /// The headers took too long.
    SlowHeader,
    /// Nothing was asked for too long.
    Idle,
}

impl Pulse {
    /// A new connection owes its first request.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            state: AtomicU64::new(HEADER),
        })
    }

    fn set(&self, state: u64) {
        let micros = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX >> 2);
        self.state.store(micros << 2 | state, Ordering::Relaxed);
    }

    fn bytes_came(&self) {
        if self.state.load(Ordering::Relaxed) & 3 == IDLE {
            self.set(HEADER);
        }
    }

    /// A request's headers are complete.
    pub fn request_began(&self) {
        self.state.store(BUSY, Ordering::Relaxed);
    }

    /// Its answer is on the way.
    pub fn request_ended(&self) {
        self.set(IDLE);
    }

    pub fn verdict(&self, patience: Patience) -> Verdict {
        let word = self.state.load(Ordering::Relaxed);
        let spent = self
            .start
            .elapsed()
            .saturating_sub(Duration::from_micros(word >> 2));
        let (limit, over) = match word & 3 {
            HEADER => (patience.header, Verdict::SlowHeader),
            IDLE => (patience.idle, Verdict::Idle),
            _ => return Verdict::Later(patience.header),
        };
        match limit.checked_sub(spent) {
            // A later state may have the shorter limit.
            Some(left) if !left.is_zero() => Verdict::Later(left.min(patience.header)),
            _ => over,
        }
    }
}

/// A stream that tells the pulse when bytes arrive.
pub struct Felt<S> {
    stream: S,
    pulse: Arc<Pulse>,
}

impl<S> Felt<S> {
    pub fn new(stream: S, pulse: Arc<Pulse>) -> Self {
        Self { stream, pulse }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Felt<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.pulse.bytes_came();
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Felt<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_its_own_limit() {
        let long = Duration::from_secs(3600);
        let none = Duration::ZERO;
        let pulse = Pulse::new();
        let patience = |header, idle| Patience { header, idle };
        assert_eq!(pulse.verdict(patience(none, long)), Verdict::SlowHeader);
        assert!(matches!(
            pulse.verdict(patience(long, none)),
            Verdict::Later(_)
        ));
        pulse.request_began();
        assert!(matches!(
            pulse.verdict(patience(none, none)),
            Verdict::Later(_)
        ));
        pulse.request_ended();
        assert_eq!(pulse.verdict(patience(long, none)), Verdict::Idle);
        assert!(matches!(
            pulse.verdict(patience(none, long)),
            Verdict::Later(_)
        ));
        pulse.bytes_came();
        assert_eq!(pulse.verdict(patience(none, long)), Verdict::SlowHeader);
        // Bytes of a body do not turn an answer into a header.
        pulse.request_began();
        pulse.bytes_came();
        assert!(matches!(
            pulse.verdict(patience(none, none)),
            Verdict::Later(_)
        ));
    }
}
