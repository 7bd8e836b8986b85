//! What the clients of S3 and of DynamoDB have in common.

use std::error::Error;

/// What a server says, by its code and message, or why it said nothing; without what was sent.
pub(crate) fn text(code: Option<&str>, message: Option<&str>, error: &dyn Error) -> String {
    if let Some(code) = code {
        return format!("{code}: {}", message.unwrap_or("refused"));
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
