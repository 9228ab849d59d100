//! One JSON number as a machine number, without a detour.
//!
//! Called by [`super::numbers`] for each element of a tensor, so it must be fast; it is right to the last
//! bit all the same (tests compare with the standard library). Text is strict JSON (RFC 8259, section 6).

/// Why a text is not the number wanted.
#[derive(Debug)]
pub enum Wrong {
    /// No number of this kind begins there.
    Form,
    /// A number that the datatype cannot hold.
    Range,
}

/// A JSON number without fraction and exponent: sign, magnitude, end.
#[inline]
pub fn integer(text: &[u8], start: usize) -> Result<(bool, u64, usize), Wrong> {
    let negative = text.get(start) == Some(&b'-');
    let first = start + usize::from(negative);
    let mut at = first;
    let mut magnitude = 0u64;
    while let Some(digit) = digit(text, at) {
        magnitude = magnitude
            .checked_mul(10)
            .and_then(|m| m.checked_add(digit))
            .ok_or(Wrong::Range)?;
        at += 1;
    }
    let leading_zero = at - first > 1 && text[first] == b'0';
    if at == first || leading_zero || matches!(text.get(at), Some(b'.' | b'e' | b'E')) {
        return Err(Wrong::Form);
    }
    Ok((negative, magnitude, at))
}

#[inline(always)]
fn digit(text: &[u8], at: usize) -> Option<u64> {
    let value = text.get(at)?.wrapping_sub(b'0');
    (value < 10).then_some(u64::from(value))
}

/// ± `mantissa` · 10^`exponent`, as it stands in the text.
struct Decimal {
    negative: bool,
    mantissa: u64,
    exponent: i32,
    /// More digits than `mantissa` holds, or an absurd exponent: only the text is exact.
    inexact: bool,
    end: usize,
}

/// Reads one JSON number (RFC 8259, section 6).
#[inline(always)]
fn decimal(text: &[u8], start: usize) -> Result<Decimal, Wrong> {
    let negative = text.get(start) == Some(&b'-');
    let first = start + usize::from(negative);
    let mut at = first;
    let mut mantissa = 0u64;
    while let Some(digit) = digit(text, at) {
        mantissa = mantissa.wrapping_mul(10).wrapping_add(digit);
        at += 1;
    }
    let mut digits = at - first;
    if digits == 0 || (digits > 1 && text[first] == b'0') {
        return Err(Wrong::Form);
    }
    let mut exponent = 0i32;
    if text.get(at) == Some(&b'.') {
        at += 1;
        let fraction = at;
        while let Some(digit) = digit(text, at) {
            mantissa = mantissa.wrapping_mul(10).wrapping_add(digit);
            at += 1;
        }
        let places = at - fraction;
        if places == 0 {
            return Err(Wrong::Form);
        }
        digits += places;
        exponent = i32::try_from(places).map_or(i32::MIN, |p| -p);
    }
    let mut inexact = digits > 19;
    if let Some(b'e' | b'E') = text.get(at) {
        at += 1;
        let minus = text.get(at) == Some(&b'-');
        at += usize::from(minus || text.get(at) == Some(&b'+'));
        let exponent_digits = at;
        let mut written = 0i32;
        while let Some(digit) = digit(text, at) {
            // Past 100,000 the value is 0 or infinite whatever the digits before were, or there are so many
            // of those that the text decides.
            if written > 100_000 {
                inexact = true;
            } else {
                written = written * 10 + digit as i32;
            }
            at += 1;
        }
        if at == exponent_digits {
            return Err(Wrong::Form);
        }
        exponent = exponent.saturating_add(if minus { -written } else { written });
    }
    Ok(Decimal {
        negative,
        mantissa,
        exponent,
        inexact,
        end: at,
    })
}

/// Powers of ten that a double holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];

/// The nearest FP32, halves to even, like the standard library's parser but faster.
#[inline(always)]
pub fn float32(text: &[u8], start: usize) -> Result<(f32, usize), Wrong> {
    /// The nearest doubles to 10^0, 10^-1, …
    const FRACTIONS: [f64; 23] = [
        1e-0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13,
        1e-14, 1e-15, 1e-16, 1e-17, 1e-18, 1e-19, 1e-20, 1e-21, 1e-22,
    ];
    let decimal = decimal(text, start)?;
    let powers = if decimal.exponent > 0 {
        &POWERS
    } else {
        &FRACTIONS
    };
    if !decimal.inexact
        && let Some(power) = powers.get(decimal.exponent.unsigned_abs() as usize)
    {
        // Three roundings of at most 2^-53 each: `value` is off by at most 3 units of its last place. Rounding
        // it to FP32 is right unless it lies that close to the middle between two FP32: there, and where
        // FP32 has fewer bits (subnormals) or ends, the exact parser decides.
        const MIDDLE: u64 = 1 << 28;
        let value = decimal.mantissa as f64 * power;
        let low = value.to_bits() & ((1 << 29) - 1);
        let safe = low.abs_diff(MIDDLE) > 4;
        let normal = (f64::from(f32::MIN_POSITIVE)..1e38).contains(&value);
        if (safe && normal) || value == 0.0 {
            let value = value as f32;
            let value = if decimal.negative { -value } else { value };
            return Ok((value, decimal.end));
        }
    }
    let value: f32 = exact(text, start, decimal.end)?;
    if value.is_finite() {
        Ok((value, decimal.end))
    } else {
        Err(Wrong::Range)
    }
}

#[inline(always)]
pub fn float64(text: &[u8], start: usize) -> Result<(f64, usize), Wrong> {
    let decimal = decimal(text, start)?;
    // A mantissa of 53 bits and an exact power: one rounding, hence the nearest double.
    if !decimal.inexact
        && decimal.mantissa <= 1 << 53
        && let Some(power) = POWERS.get(decimal.exponent.unsigned_abs() as usize)
    {
        let value = decimal.mantissa as f64;
        let value = if decimal.exponent < 0 {
            value / power
        } else {
            value * power
        };
        let value = if decimal.negative { -value } else { value };
        return Ok((value, decimal.end));
    }
    let value: f64 = exact(text, start, decimal.end)?;
    if value.is_finite() {
        Ok((value, decimal.end))
    } else {
        Err(Wrong::Range)
    }
}

/// The nearest FP16 to the nearest double: the double has so many more bits that only a text within 2^-53 of the
/// middle between two FP16 could be rounded to the other one.
#[inline(always)]
pub fn float16(text: &[u8], start: usize) -> Result<(half::f16, usize), Wrong> {
    let (wide, end) = float64(text, start)?;
    let value = half::f16::from_f64(wide);
    if value.is_finite() {
        Ok((value, end))
    } else {
        Err(Wrong::Range)
    }
}

#[cold]
#[inline(never)]
fn exact<T: std::str::FromStr>(text: &[u8], start: usize, end: usize) -> Result<T, Wrong> {
    std::str::from_utf8(&text[start..end])
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(Wrong::Form)
}
