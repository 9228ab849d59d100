//! The datatypes of tensors as Rust's types: the one table of them.
//!
//! Whoever does something with each value of a tensor (text into numbers, numbers into text, answers beside known
//! ones) writes it once for any [`Element`] and lets [`with_element`] find the type. Strings have no size and
//! are no elements here: [`crate::strings`].

use half::f16;

/// A value of a tensor, as TFLite keeps it: little-endian, of one size.
pub trait Element: Copy {
    /// Of its bytes in a tensor.
    const SIZE: usize;
    /// From exactly [`Self::SIZE`] bytes.
    fn load(bytes: &[u8]) -> Self;
    /// Into exactly [`Self::SIZE`] bytes.
    fn store(self, place: &mut [u8]);
    fn to_f64(self) -> f64;
    /// The nearest value for reals; `None` for what an integer or a truth cannot be.
    fn from_f64(value: f64) -> Option<Self>;
}

/// A boolean, which TFLite keeps in a byte. Any byte but 0 is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truth(pub bool);

impl Element for Truth {
    const SIZE: usize = 1;

    #[inline(always)]
    fn load(bytes: &[u8]) -> Self {
        Self(bytes.first().is_some_and(|byte| *byte != 0))
    }

    #[inline(always)]
    fn store(self, place: &mut [u8]) {
        place.copy_from_slice(&[u8::from(self.0)]);
    }

    fn to_f64(self) -> f64 {
        f64::from(u8::from(self.0))
    }

    fn from_f64(value: f64) -> Option<Self> {
        (value == 0.0 || value == 1.0).then_some(Self(value == 1.0))
    }
}

macro_rules! element {
    ($type:ty, $to:expr, $from:expr) => {
        impl Element for $type {
            const SIZE: usize = size_of::<Self>();

            #[inline(always)]
            fn load(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<Self>()];
                own.copy_from_slice(bytes);
                Self::from_le_bytes(own)
            }

            #[inline(always)]
            fn store(self, place: &mut [u8]) {
                place.copy_from_slice(&self.to_le_bytes());
            }

            fn to_f64(self) -> f64 {
                let to: fn(Self) -> f64 = $to;
                to(self)
            }

            fn from_f64(value: f64) -> Option<Self> {
                let from: fn(f64) -> Option<Self> = $from;
                from(value)
            }
        }
    };
}

macro_rules! integers {
    ($($type:ty),*) => {
        $(element!(
            $type,
            |value| value as f64,
            // The cast saturates, so only exact values survive the way back.
            |value| Some(value as $type).filter(|own| *own as f64 == value)
        );)*
    };
}

integers!(u8, u16, u32, u64, i8, i16, i32, i64);
element!(f16, f16::to_f64, |value| Some(f16::from_f64(value)));
element!(f32, f64::from, |value| Some(value as f32));
element!(f64, |value| value, Some);

/// `with_element!(datatype, T => expression, strings => expression)`: the first with `T` as the type of the datatype's
/// values, the second for tensors of strings.
macro_rules! with_element {
    (@table $datatype:expr, $type:ident, $each:expr, $strings:expr, $($name:ident: $own:ty),*) => {
        match $datatype {
            $(::edgeward_models::manifest::Datatype::$name => {
                type $type = $own;
                $each
            })*
            ::edgeward_models::manifest::Datatype::Bytes => $strings,
        }
    };
    ($datatype:expr, $type:ident => $each:expr, strings => $strings:expr) => {
        $crate::element::with_element!(@table $datatype, $type, $each, $strings,
            Bool: $crate::element::Truth, Uint8: u8, Uint16: u16, Uint32: u32, Uint64: u64,
            Int8: i8, Int16: i16, Int32: i32, Int64: i64, Fp16: ::half::f16, Fp32: f32, Fp64: f64)
    };
}
pub(crate) use with_element;

#[cfg(test)]
mod tests {
    use super::*;
    use edgeward_models::manifest::Datatype;

    #[test]
    fn every_datatype_has_the_size_that_the_manifest_gives_it() {
        use Datatype::*;
        for datatype in [
            Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Fp32, Fp64, Bytes,
        ] {
            let size = with_element!(datatype, T => Some(<T as Element>::SIZE), strings => None);
            assert_eq!(size, datatype.size(), "{datatype:?}");
        }
    }

    #[test]
    fn what_is_stored_is_loaded_again() {
        fn same<T: Element + PartialEq + std::fmt::Debug>(value: T) {
            let mut place = vec![0; T::SIZE];
            value.store(&mut place);
            assert_eq!(T::load(&place), value);
            assert_eq!(T::from_f64(value.to_f64()), Some(value));
        }
        same(Truth(true));
        same(-7i8);
        same(u32::MAX);
        same(f16::from_f32(0.5));
        same(-2.5e-30f32);
        assert_eq!(u8::from_f64(256.0), None);
        assert_eq!(i16::from_f64(0.5), None);
        assert_eq!(u16::from_f64(f64::NAN), None);
        assert_eq!(Truth::from_f64(2.0), None);
    }
}
