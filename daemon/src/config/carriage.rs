//! The keys of a connection that say how the data plane is to carry it.

use std::num::NonZeroU32;

use bewick_ike::{Carriage, REPLAY_WINDOWS};

use super::{PlaneChoice, reader::TableReader};

/// Reads them; what is wrong is in the reader's report.
pub(super) fn read(reader: &mut TableReader<'_, '_, '_>, dataplane: PlaneChoice) -> Carriage {
    let mut out = Carriage::default();
    let (least, most) = (*REPLAY_WINDOWS.start(), *REPLAY_WINDOWS.end());
    let range = u64::from(least)..=u64::from(most);
    if let Some(field) = reader.number("replay_window", range, "packets") {
        out.replay_window = u32::try_from(field.value).unwrap_or(most);
    }
    if let Some(field) = reader.bool("offload") {
        out.offload = field.value;
        if field.value && dataplane == PlaneChoice::Userspace {
            reader.report.add(
                &field.span,
                "offload is true and dataplane is \"userspace\", which no network card can help; remove \
                 offload, or let dataplane be \"kernel\"",
            );
        }
    }
    out.if_id = if_id(reader, dataplane);
    out
}

/// The XFRM interface whose packets alone are carried.
fn if_id(reader: &mut TableReader<'_, '_, '_>, dataplane: PlaneChoice) -> Option<NonZeroU32> {
    let what = "the if_id of an XFRM interface";
    let field = reader.number("if_id", 1..=u32::MAX.into(), what)?;
    if dataplane == PlaneChoice::Userspace {
        let text = "if_id is for XFRM interfaces, which the kernel's data plane has, and dataplane is \
                    \"userspace\"; remove if_id, or let dataplane be \"kernel\"";
        reader.report.add(&field.span, text);
    }
    u32::try_from(field.value).ok().and_then(NonZeroU32::new)
}
