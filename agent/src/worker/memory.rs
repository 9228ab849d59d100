//! Memory that agent and worker share: sealed memfds, mapped on both sides.
//!
//! A descriptor from the other side is mapped only if its seals say that it can no longer shrink (reading
//! past its end would kill the reader) and its size is the expected one. What stands in the memory is never
//! trusted: every offset is checked against the mapping, and the other side may change bytes at any time.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// The alignment of every input and output: TFLite reads inputs in place only at this one.
pub const ALIGNMENT: usize = crate::tflite::ALIGNMENT;

/// `length` rounded up to [`ALIGNMENT`]; `None` on overflow.
pub fn aligned(length: usize) -> Option<usize> {
    length.checked_next_multiple_of(ALIGNMENT)
}

/// One mapping, unmapped on drop.
#[derive(Debug)]
pub struct Memory {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and goes away with `Memory` only.
unsafe impl Send for Memory {}
// SAFETY: shared references give raw pointers and atomics only.
unsafe impl Sync for Memory {}

impl Memory {
    /// Makes zeroed shared memory of a fixed size, with the descriptor to pass on.
    pub fn create(name: &str, length: usize) -> io::Result<(OwnedFd, Self)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels before 6.3 do not know the flag that forbids executing the file.
        let descriptor = rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| rustix::fs::memfd_create(name, flags))?;
        rustix::fs::ftruncate(&descriptor, length as u64)?;
        rustix::fs::fcntl_add_seals(
            &descriptor,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )?;
        let memory = Self::map_checked(&descriptor, length)?;
        Ok((descriptor, memory))
    }

    /// Maps memory that the other side made, if it is sealed and exactly `length` bytes long.
    pub fn map(descriptor: impl AsFd, length: usize) -> io::Result<Self> {
        let wanted = SealFlags::SHRINK | SealFlags::GROW;
        // Fails for anything that is not a memfd.
        if !rustix::fs::fcntl_get_seals(&descriptor)?.contains(wanted) {
            return Err(io::Error::other("shared memory without seals"));
        }
        let size = rustix::fs::fstat(&descriptor)?.st_size;
        if u64::try_from(size).ok() != Some(length as u64) {
            return Err(io::Error::other("shared memory of another size than said"));
        }
        Self::map_checked(descriptor, length)
    }

    fn map_checked(descriptor: impl AsFd, length: usize) -> io::Result<Self> {
        if length == 0 {
            return Err(io::Error::other("shared memory without bytes"));
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory; the seals
        // keep the file as long as the mapping.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                descriptor,
                0,
            )?
        };
        let address = NonNull::new(address.cast::<u8>())
            .ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { address, length })
    }

    pub fn length(&self) -> usize {
        self.length
    }

    /// Where `length` bytes at `offset` begin; `None` unless all of them lie in the mapping.
    pub fn at(&self, offset: usize, length: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(length)? > self.length {
            return None;
        }
        // SAFETY: the offset is within the mapping.
        Some(unsafe { self.address.add(offset) })
    }

    /// The bytes of a range.
    ///
    /// # Safety
    /// Nobody in this process may write to the range meanwhile. The other process may: the bytes are
    /// plain numbers to whoever reads them, and must be checked like any foreign byte.
    pub unsafe fn bytes(&self, offset: usize, length: usize) -> Option<&[u8]> {
        let start = self.at(offset, length)?;
        // SAFETY: in the mapping by `at`; not written here by the caller's promise.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), length) })
    }

    /// The bytes of a range, to be written.
    ///
    /// # Safety
    /// Nobody else in this process may read or write the range meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn bytes_mut(&self, offset: usize, length: usize) -> Option<&mut [u8]> {
        let start = self.at(offset, length)?;
        // SAFETY: in the mapping by `at`; ours alone by the caller's promise.
        Some(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), length) })
    }

    /// A word that both processes change atomically. `None` if it is not in the mapping or not aligned.
    pub fn word(&self, offset: usize) -> Option<&AtomicU32> {
        if !offset.is_multiple_of(align_of::<AtomicU32>()) {
            return None;
        }
        let start = self.at(offset, size_of::<AtomicU32>())?;
        // SAFETY: in the mapping, aligned (mappings begin at a page), and only used as an atomic.
        Some(unsafe { start.cast::<AtomicU32>().as_ref() })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length; slices borrowed from it are gone.
        let _ = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_mappings_show_the_same_bytes_and_ranges_are_checked() {
        let (descriptor, ours) = Memory::create("test", 4096).expect("create");
        let theirs = Memory::map(&descriptor, 4096).expect("map");
        // SAFETY: one thread, no other slices.
        unsafe {
            ours.bytes_mut(100, 3)
                .expect("range")
                .copy_from_slice(b"abc");
            assert_eq!(theirs.bytes(100, 3).expect("range"), b"abc");
        }
        assert!(ours.at(4090, 7).is_none());
        assert!(ours.at(usize::MAX, 2).is_none());
        assert!(ours.at(4096, 0).is_some());
        assert!(ours.word(2).is_none() && ours.word(4092).is_some() && ours.word(4096).is_none());
    }

    #[test]
    fn unsealed_shrunken_or_ordinary_files_are_not_mapped() {
        let unsealed = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).expect("memfd");
        rustix::fs::ftruncate(&unsealed, 4096).expect("size");
        assert!(Memory::map(&unsealed, 4096).is_err());
        let (sealed, _memory) = Memory::create("test", 4096).expect("create");
        assert!(Memory::map(&sealed, 8192).is_err());
        assert!(rustix::fs::ftruncate(&sealed, 0).is_err());
        let file = tempfile::tempfile().expect("file");
        file.set_len(4096).expect("size");
        assert!(Memory::map(&file, 4096).is_err());
    }
}
