//! Numbered requests on their way to the home of their chat.

use crate::peers::frame::{COMMANDS, COMMANDS_BYTES, PeerFrame};
use crate::peers::{LinkError, PeerLink};
use godwit_core::{Command, Outcome};
use godwit_wire::{ChatId, DeviceId, Refusal};
use std::sync::Arc;

/// Hands on requests of one device in one chat, in their order, and gives the wait for their outcomes. What has no
/// answer may have been executed: sent again, it is the same request.
pub(crate) fn forward(
    home: &Arc<PeerLink>,
    device: &DeviceId,
    chat: &ChatId,
    commands: Vec<Command>,
) -> Result<impl Future<Output = Result<Vec<Outcome>, Refusal>> + Send + use<>, Refusal> {
    let mut answers = Vec::new();
    let mut commands = commands.into_iter().peekable();
    while commands.peek().is_some() {
        let (mut requests, mut bytes) = (Vec::new(), 0);
        while let Some(command) = commands.next_if(|_| requests.len() < COMMANDS && bytes < COMMANDS_BYTES) {
            bytes += command.cost_bytes();
            requests.push(command.into_request());
        }
        let count = requests.len();
        let frame = PeerFrame::Commands { device: device.clone(), requests };
        answers.push((count, home.request(Some(chat), &frame).map_err(LinkError::refusal)?));
    }
    Ok(async move {
        let mut all = Vec::new();
        for (count, answer) in answers {
            match answer.await {
                Ok(PeerFrame::Outcomes(outcomes)) if outcomes.len() == count => all.extend(outcomes),
                Ok(PeerFrame::Refused(refusal)) => {
                    all.extend(std::iter::repeat_n(Outcome::Refused(refusal), count));
                }
                Ok(_) => return Err(LinkError::Confused.refusal()),
                Err(error) => return Err(error.refusal()),
            }
        }
        Ok(all)
    })
}
