//! Lines of standard input.

use godwit_client::limits;
use std::io::{BufRead, Error, ErrorKind, Read};
use tokio::sync::mpsc;

/// Bytes of one line. What is longer is over the limit of a message anyhow, and is not held in memory.
const LINE_BYTES: usize = 2 * limits::CONTENT_BYTES;

/// Lines of standard input. Reading blocks, and is done on a thread of its own, to the end or the first failure. A line
/// that is not UTF-8, or too long, is told as an error of kind `InvalidData`, and the next one follows.
pub(crate) fn input_lines(ahead: usize) -> mpsc::Receiver<std::io::Result<String>> {
    let (lines, queue) = mpsc::channel(ahead);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        while let Some(line) = next_line(&mut input).transpose() {
            let failed = line.as_ref().is_err_and(|error| error.kind() != ErrorKind::InvalidData);
            if lines.blocking_send(line).is_err() || failed {
                return;
            }
        }
    });
    queue
}

fn next_line(input: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    input.by_ref().take(LINE_BYTES as u64).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let whole = bytes.pop_if(|last| *last == b'\n').is_some();
    if !whole && bytes.len() == LINE_BYTES {
        skip_line(input)?;
        return Err(Error::new(ErrorKind::InvalidData, format!("a line of more than {LINE_BYTES} bytes")));
    }
    bytes.pop_if(|last| *last == b'\r' && whole);
    let line = String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::InvalidData, "a line that is not UTF-8"))?;
    Ok(Some(line))
}

fn skip_line(input: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let held = input.fill_buf()?;
        let end = held.iter().position(|byte| *byte == b'\n');
        let (count, last) = (end.map_or(held.len(), |end| end + 1), end.is_some() || held.is_empty());
        input.consume(count);
        if last {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_lines_are_told_and_the_next_follows() {
        let mut input = b"one\r\n\xff\n".to_vec();
        input.extend(vec![b'x'; 5 * LINE_BYTES]);
        input.extend(b"\n\nlast");
        let mut input = std::io::BufReader::with_capacity(1000, input.as_slice());
        let mut next = || next_line(&mut input).map_err(|error| error.kind());
        assert_eq!(next(), Ok(Some("one".to_owned())));
        assert_eq!(next(), Err(ErrorKind::InvalidData));
        assert_eq!(next(), Err(ErrorKind::InvalidData));
        assert_eq!(next(), Ok(Some(String::new())));
        assert_eq!(next(), Ok(Some("last".to_owned())));
        assert_eq!(next(), Ok(None));
    }
}
