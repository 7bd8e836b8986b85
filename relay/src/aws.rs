//! What the clients of S3 and of DynamoDB have in common.

use std::error::Error;

type Layer<'a> = &'a (dyn Error + 'static);

/// An error, then what it came from, and so on.
fn layers(error: Layer<'_>) -> impl Iterator<Item = Layer<'_>> {
    std::iter::successors(Some(error), |error: &Layer<'_>| (*error).source())
}

/// What a server says, by its code and message, or why it said nothing; without what was sent.
pub(crate) fn text(code: Option<&str>, message: Option<&str>, error: Layer<'_>) -> String {
    match code {
        Some(code) => format!("{code}: {}", message.unwrap_or("refused")),
        None => layers(error).map(ToString::to_string).collect::<Vec<_>>().join(": "),
    }
}

/// Why a server said nothing, without the layers above that.
#[cfg(feature = "dynamodb")]
pub(crate) fn root(error: Layer<'_>) -> String {
    layers(error).last().unwrap_or(error).to_string()
}
