//! Is a backup that is read to its end what was written, and is any state written so that it can be read?
//!
//! The first byte chooses what the rest is: 0 a backup, 1 the lines of its objects, written as a backup here.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_fuzz::{EXAMPLE, NOW};
use passant_server::backup::{BackupError, Header, Reader, pieces};
use passant_server::state::{Change, Cursor, Lineage, Revision, State};

fuzz_target!(|bytes: &[u8]| {
    let Some((way, rest)) = bytes.split_first() else { return };
    if way % 2 == 0 {
        let Ok((header, objects)) = read(rest) else { return };
        assert_eq!(u64::try_from(objects.len()), Ok(header.holds.objects()));
        let cursor = Cursor { lineage: header.lineage, revision: header.revision };
        let state = State::of_objects(header.trust_domain.clone(), cursor, objects.clone());
        assert!(state.objects().eq(objects), "an object came twice");
        return;
    }
    let lines = rest.split(|byte| *byte == b'\n');
    let objects = lines.filter_map(|line| serde_json::from_slice::<Change>(line).ok()).filter(Change::is_put);
    let cursor = Cursor { lineage: Lineage::new([3; 16]), revision: Revision::new(1 << 40) };
    let state = State::of_objects(EXAMPLE.clone(), cursor, objects.collect());
    let written: Vec<u8> = pieces(&state, NOW).flatten().collect();
    match read(&written) {
        Ok((header, objects)) => {
            assert_eq!(
                (header.lineage, header.revision, header.made_at),
                (cursor.lineage, cursor.revision, NOW)
            );
            assert!(state.objects().eq(objects));
        }
        // A state that no server has; but nothing was lost on the way.
        Err(BackupError::Damaged { what, .. }) => {
            assert!(!what.contains("checksum") && !what.contains("number was written"), "{what}");
        }
        Err(BackupError::Unsound { .. }) => {}
        Err(error) => panic!("{error}"),
    }
});

fn read(backup: &[u8]) -> Result<(Header, Vec<Change>), BackupError> {
    let mut reader = Reader::new(backup, "the backup".to_owned())?;
    let mut objects = Vec::new();
    while let Some(object) = reader.next_object()? {
        objects.push(object);
    }
    Ok((reader.header().clone(), objects))
}
