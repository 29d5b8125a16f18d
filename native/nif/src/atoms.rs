//! Every atom that crosses. Made once when the library is loaded; nothing else here makes one.

rustler::atoms! {
    ok, error, nil, yes = "true", no = "false",

    // What failed.
    busy, charge_spent, closed, corrupted, dirty_needed, efbig, emfile, enospc, exists, file_changed, invalid, invalid_json, invalid_spec, locked,
    memory_limit_exceeded, no_huge_pages, no_process, not_enough_memory, not_found, not_regular_file, not_unix_socket,
    not_writer, not_zero_copy, os_error, out_of_range, read_only, replaced, sealed, sealed_by_peer, timeout, too_large,
    too_many_mappings, unsupported_filesystem, wrong_owner,

    // Details of it.
    after_ms, asked, available, call, cause, closing, errno, expected, field, found, free, length, limit, limited_by,
    live, message, offset, owner, path, reason, reserve, size, used, writer,

    // A specification and a header.
    id, instance, name, mode, peers_write, huge_pages, cleanup_policy, dtype, shape, metadata, mapping_limit,
    descriptor_reserve, access_read_only, owner_read_only, label, data_offset, named, created_at, identity, sequence, state,
    prefer, require, no_huge = "no", automatic, manual, reference_counted, allocated, freed, read_write,

    // Information.
    copied, zero_copy, generation, access_count, last_access, viewed, mapped, page_size, open_files, max_map_count,
    memory_available, memory_limited_by, huge_pages_free, huge_page_size, mappings, descriptors, closing_bytes, watches,
    pid, uid, gid, start_time, snakepit_peer_down,

    // Isolated libraries.
    abandoned, again, beat_age_ms, beats, because, bell, bell_closed, calls, cancelled, code, control, crashed, done, executors, exit, exited, failed, faulty, full,
    functions, hello, in_flight, init, lacked_ms, library, load_callback, load_info, loaded, max_depth, max_words, memory, mismatch, missing, module, more, names,
    nif_version, no_init, no_worker, not_a_library, not_implemented, not_loaded, not_started, objects, open, opened, orphans, output, parked, pending,
    protocol, raised, ready, ready_input, releases, resident, retry, select, sent, signal, slot, slot_bytes, slots, spill_bytes,
    spin_us, stage, stale, started, status, symbol, too_many_atoms, too_many_names, undefined, unloaded, unresolved_symbol, unwanted, upgrade_callback, unsupported,
    unsupported_term, waiting, worker, workers, wrong_architecture, quota_atoms = "atoms",

    // What a library asks of the VM.
    all, hold, port_command, ready_output, released, serve, wait, whereis,
}
