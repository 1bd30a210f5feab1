//! IKE and ESP in a TCP stream (RFC 9329 §3, §4): the prefix, and frames with a length of 16 bits.
//!
//! The reader owns one buffer of fixed size, which the driver reads into; it holds no more than that,
//! whatever the peer sends.

/// What the originator of the connection sends first (RFC 9329 §4).
pub const STREAM_PREFIX: [u8; 6] = *b"IKETCP";

/// Four zero octets where an ESP packet would have its SPI (RFC 9329 §3.1).
const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// Octets of the Length field, which counts itself.
const LENGTH: usize = 2;

/// The longest frame: what a Length field can say.
const MOST: usize = 65_535;

/// Why a stream is of no use any more: the connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// the first octets are not [`STREAM_PREFIX`]
    #[error("the stream does not begin with IKETCP (RFC 9329 §4)")]
    Prefix,
    /// a Length field of 0 or 1
    #[error("a frame has a length of less than 2 (RFC 9329 §3)")]
    Length,
    /// what is to be sent does not fit into a frame
    #[error("a frame has at most 65535 octets")]
    TooLong,
}

/// What stands in one frame.
#[derive(Debug, PartialEq, Eq)]
pub enum StreamFrame<'a> {
    /// an IKE message, without the non-ESP marker
    Ike(&'a [u8]),
    /// an ESP packet, from its SPI on
    Esp(&'a mut [u8]),
    /// a NAT keepalive, or less than any packet has: dropped in silence (RFC 9329 §6.6)
    Nothing,
}

/// Reads the frames of one direction of a connection.
pub struct StreamReader {
    buffer: Box<[u8]>,
    /// what has been read and not been taken yet
    start: usize,
    end: usize,
    prefixed: bool,
}

impl StreamReader {
    /// For the end that has accepted the connection: the prefix comes first.
    pub fn responder() -> Self {
        StreamReader { prefixed: false, ..StreamReader::originator() }
    }

    /// For the end that has opened the connection: no prefix comes (RFC 9329 §4).
    pub fn originator() -> Self {
        let buffer = vec![0; 2 * MOST].into_boxed_slice();
        StreamReader { buffer, start: 0, end: 0, prefixed: true }
    }

    /// Where the next octets of the stream go; never empty once [`Self::next_frame`] gave `None`.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// So many octets have been read into [`Self::room`].
    pub fn filled(&mut self, octets: usize) {
        self.end = (self.end + octets).min(self.buffer.len());
    }

    /// The next frame that is whole; `None` if more octets are needed.
    ///
    /// # Errors
    /// If the stream is none of RFC 9329: the connection is to be closed.
    pub fn next_frame(&mut self) -> Result<Option<StreamFrame<'_>>, StreamError> {
        let held = self.buffer.get(self.start..self.end).unwrap_or_default();
        if !self.prefixed {
            let seen = held.len().min(STREAM_PREFIX.len());
            if held.get(..seen) != STREAM_PREFIX.get(..seen) {
                return Err(StreamError::Prefix);
            }
            if seen < STREAM_PREFIX.len() {
                return Ok(None);
            }
            self.start += STREAM_PREFIX.len();
            self.prefixed = true;
        }
        let held = self.buffer.get_mut(self.start..self.end).unwrap_or_default();
        let Some(length) = held.first_chunk::<LENGTH>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        if length < LENGTH {
            return Err(StreamError::Length);
        }
        let Some(frame) = held.get_mut(LENGTH..length) else { return Ok(None) };
        self.start += length;
        if frame.len() < NON_ESP_MARKER.len() {
            return Ok(Some(StreamFrame::Nothing));
        }
        Ok(Some(match frame.starts_with(&NON_ESP_MARKER) {
            true => StreamFrame::Ike(frame.get(NON_ESP_MARKER.len()..).unwrap_or_default()),
            false => StreamFrame::Esp(frame),
        }))
    }
}

/// Puts the frame of an IKE message at the end of `out` (RFC 9329 §3.1).
///
/// # Errors
/// If the message is too long for a frame; `out` is as it was.
pub fn emit_ike_frame(message: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
    emit(&NON_ESP_MARKER, message, out)
}

/// Puts the frame of an ESP packet at the end of `out` (RFC 9329 §3.2).
///
/// # Errors
/// If the packet is too long for a frame; `out` is as it was.
pub fn emit_esp_frame(packet: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
    emit(&[], packet, out)
}

fn emit(marker: &[u8], content: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
    let length = LENGTH + marker.len() + content.len();
    let length = u16::try_from(length).map_err(|_| StreamError::TooLong)?;
    out.extend(length.to_be_bytes());
    out.extend_from_slice(marker);
    out.extend_from_slice(content);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out, as octets with a letter in front, when the stream arrives in such pieces.
    fn read(
        mut reader: StreamReader,
        stream: &[u8],
        piece: usize,
    ) -> Result<Vec<Vec<u8>>, StreamError> {
        let mut out = Vec::new();
        for piece in stream.chunks(piece) {
            reader.room()[..piece.len()].copy_from_slice(piece);
            reader.filled(piece.len());
            while let Some(frame) = reader.next_frame()? {
                out.push(match frame {
                    StreamFrame::Ike(message) => [b"i", message].concat(),
                    StreamFrame::Esp(packet) => [b"e", &*packet].concat(),
                    StreamFrame::Nothing => b"n".to_vec(),
                });
            }
        }
        Ok(out)
    }

    #[test]
    fn rfc_9329_frames_come_out_whole_however_the_stream_is_cut() {
        let mut stream = STREAM_PREFIX.to_vec();
        let long = vec![7; MOST - LENGTH];
        emit_ike_frame(b"first", &mut stream).unwrap();
        emit_esp_frame(b"\0\0\0\x01second", &mut stream).unwrap();
        emit_esp_frame(&[0xff], &mut stream).unwrap();
        emit_esp_frame(&long, &mut stream).unwrap();
        emit_ike_frame(b"", &mut stream).unwrap();
        let expected = [
            b"ifirst".to_vec(),
            b"e\0\0\0\x01second".to_vec(),
            b"n".to_vec(),
            [b"e", long.as_slice()].concat(),
            b"i".to_vec(),
        ];
        for piece in [1, 2, 3, 7, 1000, MOST] {
            assert_eq!(
                read(StreamReader::responder(), &stream, piece).unwrap(),
                expected,
                "{piece}"
            );
        }
        let without = &stream[STREAM_PREFIX.len()..];
        assert_eq!(read(StreamReader::originator(), without, 5).unwrap(), expected);
    }

    #[test]
    fn rfc_9329_nothing_is_read_before_the_whole_prefix_and_none_but_the_prefix() {
        for cut in 0..STREAM_PREFIX.len() {
            let mut stream = STREAM_PREFIX[..cut].to_vec();
            assert_eq!(read(StreamReader::responder(), &stream, 1), Ok(Vec::new()));
            emit_ike_frame(b"message", &mut stream).unwrap();
            assert_eq!(read(StreamReader::responder(), &stream, 1), Err(StreamError::Prefix));
        }
    }

    #[test]
    fn rfc_9329_a_length_of_0_or_1_is_the_end_of_the_stream() {
        for length in [0, 1] {
            let stream = [&STREAM_PREFIX[..], &[0, length]].concat();
            assert_eq!(read(StreamReader::responder(), &stream, 8), Err(StreamError::Length));
        }
        assert_eq!(read(StreamReader::originator(), &[0, 2, 0, 3, 0xff], 1).unwrap(), [b"n", b"n"]);
    }

    #[test]
    fn rfc_9329_what_is_too_long_for_a_frame_is_refused() {
        let mut out = b"before".to_vec();
        assert_eq!(emit_esp_frame(&vec![1; MOST - 1], &mut out), Err(StreamError::TooLong));
        assert_eq!(emit_ike_frame(&vec![1; MOST - 5], &mut out), Err(StreamError::TooLong));
        assert_eq!(out, b"before");
    }
}
