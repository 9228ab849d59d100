//! How long to wait after something failed.

use std::time::Duration;

/// The pause after the first failure; doubled by each further one.
pub const FIRST: Duration = Duration::from_secs(5);
pub const LONGEST: Duration = Duration::from_secs(600);

/// Grows with each failure; spread, so that a whole fleet does not come back in step.
pub fn after(failures: u32) -> Duration {
    let pause = FIRST * 2u32.saturating_pow(failures.clamp(1, 10) - 1);
    pause.min(LONGEST).mul_f64(rand::random_range(0.8..1.2))
}
