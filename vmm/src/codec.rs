//! Bytes and values: the one encoding of saved state and of migration frames.
//!
//! Little-endian, fixed-width numbers; byte strings and lists carry their
//! length in front. Decoding trusts nothing: every length is checked against
//! what is there and against the reader's own bound before anything is
//! allocated.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What is wrong with bytes that do not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is malformed or cut short")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Builds a byte string.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Bytes without a length: the reader knows how many.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A count, as the lists of this encoding carry it.
    ///
    /// Everything encoded here has a bound far below 2³²; a longer list would
    /// be refused by the reader.
    pub(crate) fn count(&mut self, count: usize) -> &mut Self {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX))
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.count(bytes.len()).raw(bytes)
    }

    /// A plain C structure, padding included.
    pub(crate) fn plain<T: IntoBytes + Immutable>(&mut self, value: &T) -> &mut Self {
        self.bytes(value.as_bytes())
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Takes a byte string apart.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn raw(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(Malformed(what))?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.raw(N, what)?);
        Ok(array)
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A list's length, at most `max`.
    pub(crate) fn count(&mut self, max: usize, what: &'static str) -> Result<usize, Malformed> {
        let count = usize::try_from(self.u32(what)?).map_err(|_| Malformed(what))?;
        if count <= max { Ok(count) } else { Err(Malformed(what)) }
    }

    /// A byte string of at most `max` bytes.
    pub(crate) fn bytes(&mut self, max: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let count = self.count(max, what)?;
        self.raw(count, what)
    }

    /// Text of at most `max` bytes.
    pub(crate) fn text(&mut self, max: usize, what: &'static str) -> Result<String, Malformed> {
        let bytes = self.bytes(max, what)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed(what))
    }

    /// A plain C structure; its size must be this build's.
    pub(crate) fn plain<T: FromBytes>(&mut self, what: &'static str) -> Result<T, Malformed> {
        let bytes = self.bytes(size_of::<T>(), what)?;
        T::read_from_bytes(bytes).map_err(|_| Malformed(what))
    }

    /// Nothing may be left over.
    pub(crate) fn finish(self, what: &'static str) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed(what)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut encoder = Encoder::default();
        encoder.u16(1).u32(2).u64(3).bytes(b"four").plain(&5u64);
        let bytes = encoder.finish();
        let mut decoder = Decoder::new(&bytes);
        assert_eq!(decoder.u16("a"), Ok(1));
        assert_eq!(decoder.u32("b"), Ok(2));
        assert_eq!(decoder.u64("c"), Ok(3));
        assert_eq!(decoder.text(4, "d"), Ok("four".to_owned()));
        assert_eq!(decoder.plain::<u64>("e"), Ok(5));
        assert_eq!(decoder.finish("f"), Ok(()));
    }

    #[test]
    fn lengths_are_checked_before_use() {
        let huge = u32::MAX.to_le_bytes();
        assert_eq!(Decoder::new(&huge).bytes(usize::MAX, "text"), Err(Malformed("text")));
        assert_eq!(Decoder::new(&huge).bytes(16, "text"), Err(Malformed("text")));
        assert_eq!(Decoder::new(&[1, 2]).u32("number"), Err(Malformed("number")));
        assert_eq!(Decoder::new(&[1]).finish("frame"), Err(Malformed("frame")));
    }
}
