//! Where a connection stands: waiting, sending a request's headers, or being answered.
//!
//! One [`Pulse`] is shared by the stream (which sees bytes arrive), the service (which sees requests begin
//! and end) and the connection's watchdog, so that a slow header and an idle connection each have a limit
//! of their own at the price of two clock readings per request. Bodies and answers have their own limits.
//!
//! Over HTTP/2 requests overlap, and bytes between them are no header (pings, windows): there a connection is
//! idle from the end of its last request on. A peer that begins requests only to cancel them is cut off.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::authority::Authority;
use super::refusal;

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
    /// Requests that are being answered.
    active: AtomicU32,
    multiplexed: AtomicBool,
    /// Requests that were cancelled, less those that were answered.
    cancelled: AtomicU32,
}

/// So many cancelled requests more than answered ones end a connection.
const MAX_CANCELLED: u32 = 100;

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
            active: AtomicU32::new(0),
            multiplexed: AtomicBool::new(false),
            cancelled: AtomicU32::new(0),
        })
    }

    fn set(&self, state: u64) {
        let micros = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX >> 2);
        self.state.store(micros << 2 | state, Ordering::Relaxed);
    }

    fn bytes_came(&self) {
        if self.state.load(Ordering::Relaxed) & 3 == IDLE
            && !self.multiplexed.load(Ordering::Relaxed)
        {
            self.set(HEADER);
        }
    }

    /// A request's headers are complete. It is over when the result is dropped.
    pub fn request(self: &Arc<Self>, multiplexed: bool) -> Answering {
        self.multiplexed.store(multiplexed, Ordering::Relaxed);
        self.active.fetch_add(1, Ordering::Relaxed);
        self.state.store(BUSY, Ordering::Relaxed);
        Answering {
            pulse: Arc::clone(self),
            answered: false,
        }
    }

    fn request_ended(&self, answered: bool) {
        let cancelled = self.cancelled.load(Ordering::Relaxed);
        let cancelled = if answered {
            cancelled.saturating_sub(1)
        } else {
            cancelled.saturating_add(1)
        };
        self.cancelled.store(cancelled, Ordering::Relaxed);
        if self.active.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.set(IDLE);
        }
    }

    fn flooded(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) > MAX_CANCELLED
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

/// A request that is being answered. Dropped without [`Answering::done`]: it was cancelled.
#[derive(Debug)]
pub struct Answering {
    pulse: Arc<Pulse>,
    answered: bool,
}

impl Answering {
    /// The answer is on the way.
    pub fn done(mut self) {
        self.answered = true;
    }

    /// This much of the answer is on the way, and the peer may ask for more.
    pub fn pause(self) -> Paused {
        let pulse = Arc::clone(&self.pulse);
        self.done();
        Paused { pulse }
    }
}

/// A request that is open and waits for its peer: nothing keeps its connection from being idle.
#[derive(Debug)]
pub struct Paused {
    pulse: Arc<Pulse>,
}

impl Paused {
    pub fn resume(&self) -> Answering {
        self.pulse.request(true)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.pulse.request_ended(self.answered);
    }
}

/// A stream that tells the pulse when bytes arrive.
pub struct Felt<S> {
    stream: S,
    pulse: Arc<Pulse>,
    /// What was read of the stream before, to be read again.
    ahead: Bytes,
    /// What is to be written in place of something that counts as written.
    owed: Bytes,
    /// Over HTTP/2: makes what stands for a socket's path an authority.
    authority: Option<Authority>,
}

impl<S> Felt<S> {
    /// `ahead`: what was read to find out whether this is HTTP/2; if so, all of its preface and no more.
    pub fn new(stream: S, ahead: Bytes, http2: bool, pulse: Arc<Pulse>) -> Self {
        Self {
            stream,
            pulse,
            ahead,
            owed: Bytes::new(),
            authority: http2.then(Authority::default),
        }
    }

    /// Whether `bytes` are the library's own refusal, for which a better one is now owed.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        // No request has been made out of what came last.
        let refused = self.pulse.state.load(Ordering::Relaxed) & 3 == HEADER;
        match refused.then(|| refusal::spelled_out(bytes)).flatten() {
            Some(refusal) => {
                self.owed = refusal.into();
                true
            }
            None => false,
        }
    }
}

impl<S: AsyncWrite + Unpin> Felt<S> {
    fn poll_owed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.owed.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.owed))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let _ = self.owed.split_to(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Felt<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.pulse.flooded() {
            let text = "the peer cancels its requests instead of waiting for answers";
            return Poll::Ready(Err(io::Error::other(text)));
        }
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(authority) = &mut self.authority {
            authority.pass(&mut buffer.filled_mut()[before..]);
        }
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
        if self.replaces(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_owed(context))?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = parts
            && self.replaces(only)
        {
            return Poll::Ready(Ok(only.len()));
        }
        ready!(self.poll_owed(context))?;
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_owed(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_owed(context))?;
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
        let request = pulse.request(false);
        assert!(matches!(
            pulse.verdict(patience(none, none)),
            Verdict::Later(_)
        ));
        request.done();
        assert_eq!(pulse.verdict(patience(long, none)), Verdict::Idle);
        assert!(matches!(
            pulse.verdict(patience(none, long)),
            Verdict::Later(_)
        ));
        pulse.bytes_came();
        assert_eq!(pulse.verdict(patience(none, long)), Verdict::SlowHeader);
        // Bytes of a body do not turn an answer into a header.
        let _request = pulse.request(false);
        pulse.bytes_came();
        assert!(matches!(
            pulse.verdict(patience(none, none)),
            Verdict::Later(_)
        ));
    }

    #[test]
    fn requests_that_overlap_keep_a_connection_busy_and_pings_do_not() {
        let none = Patience {
            header: Duration::ZERO,
            idle: Duration::ZERO,
        };
        let pulse = Pulse::new();
        let (first, second) = (pulse.request(true), pulse.request(true));
        first.done();
        assert!(matches!(pulse.verdict(none), Verdict::Later(_)));
        second.done();
        pulse.bytes_came();
        assert_eq!(pulse.verdict(none), Verdict::Idle);
    }

    #[test]
    fn a_stream_that_waits_for_its_peer_leaves_its_connection_idle() {
        let none = Patience {
            header: Duration::ZERO,
            idle: Duration::ZERO,
        };
        let pulse = Pulse::new();
        let paused = pulse.request(true).pause();
        assert_eq!(pulse.verdict(none), Verdict::Idle);
        let again = paused.resume();
        assert!(matches!(pulse.verdict(none), Verdict::Later(_)));
        again.done();
        assert_eq!(pulse.verdict(none), Verdict::Idle);
    }

    #[test]
    fn a_peer_that_only_cancels_is_cut_off() {
        let pulse = Pulse::new();
        for _ in 0..1000 {
            drop(pulse.request(true));
            pulse.request(true).done();
        }
        assert!(!pulse.flooded(), "every other request was answered");
        for _ in 0..=MAX_CANCELLED {
            drop(pulse.request(true));
        }
        assert!(pulse.flooded());
    }
}
