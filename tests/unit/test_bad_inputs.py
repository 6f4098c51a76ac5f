# SPDX-License-Identifier: Apache-2.0
"""Bad inputs, 31 kinds of them: which tests throw each at the product, or which feature it would need.

The numbers are those of a checklist that was drawn up from advisories and experiments before the code was written. A
row is one kind of input, in short words; each test that it names must exist, and every test function of this table is
looked up in the source, so that a test that is renamed or removed is missed here.
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class NoFeature:
    """What would have to exist for such an input to reach anything."""

    why: str


Row = tuple[str, ...] | NoFeature

TRANSPORT = "e2e/test_source_transport.py"
FIRE = "e2e/test_source_fire.py"
LOCAL = "e2e/test_source_repository.py"
GROWTH = "e2e/test_source_growth.py"
COMMITS = "e2e/test_source_commits.py"
URL = "unit/test_source_url.py"
YAML = "unit/test_manifest_yaml.py"
CHAINS = "unit/test_manifest_chains.py"
PARSE = "unit/test_manifest_parse.py"
SELECT = "unit/test_manifest_select.py"
ARCHIVE = "unit/test_packages_archive.py"
BUNDLES = "unit/test_trust_bundles.py"
SIGSTORE = "unit/test_trust_private_sigstore.py"
SENSOR = "unit/test_sensor.py"
STATUS = "unit/test_status.py"
SOURCE = "sim/test_pass_source.py"
STATE = "sim/test_pass_state.py"
APPLY = "sim/test_pass_apply.py"
HOSTILE = "sim/test_hostile_commits.py"
LOAD = "kernel/test_linux_load.py"
ATTACH = "kernel/test_linux_attach.py"
PINS = "kernel/test_linux_pins.py"
KILL = "kernel/killed/test_kill.py"
FIRST = "kernel/killed/test_first.py"
ERRNO = "kernel/killed/test_errno.py"
GONE = "kernel/killed/test_bpffs.py"
OTHERS = "kernel/killed/test_others.py"
PROPERTIES = "properties/test_convergence.py"
CASE = "cases/plan/{}.yaml"

NO_TEMPLATES = NoFeature("manifests have no dependencies, overlays, includes, variables or templates")
NO_WEBHOOK = NoFeature("nothing listens for webhooks; a trigger is a signal or a line on a local socket")

TABLE: dict[int, dict[str, Row]] = {
    # --- the transport ---
    1: {
        "URLs that are options, helpers, other schemes or control bytes": (
            f"{URL}::test_urls_that_are_refused_without_repeating_a_secret",
            f"{URL}::test_file_is_allowed_by_name_only",
            f"{LOCAL}::test_file_urls_and_odd_settings_are_refused_when_the_source_is_opened",
        ),
    },
    2: {
        "ref names that are options, patterns or control bytes": (f"{URL}::test_refs_that_are_refused",),
        "a tag and a branch of one name": (f"{FIRE}::test_a_tag_of_the_same_name_is_not_the_branch",),
        "symbolic refs, circles, HEAD elsewhere": (
            f"{FIRE}::test_a_branch_that_is_a_link_is_followed_at_the_server_and_a_circle_is_no_ref",
        ),
        "a ref to a tag, a blob or a tree": (f"{LOCAL}::test_a_commit_that_is_none_is_refused",),
    },
    3: {
        "redirects to another host, another scheme, in circles": (
            f"{TRANSPORT}::test_a_redirect_is_refused_and_leaks_no_credentials",
            f"{FIRE}::test_what_apache_answers_has_a_reason_and_says_how_long_to_wait",
        ),
        "certificates: expired, wrong name, another authority": (
            f"{FIRE}::test_apache_with_a_wrong_name_or_an_expired_certificate",
            f"{TRANSPORT}::test_another_authority_is_refused",
            f"{TRANSPORT}::test_with_a_ca_file_the_authorities_of_the_system_do_not_count",
        ),
    },
    4: {
        "host keys: unknown, changed, none known, hashed, revoked": (
            f"{TRANSPORT}::test_ssh_refuses_a_host_key_that_is_not_the_known_one",
            f"{TRANSPORT}::test_ssh_refuses_a_revoked_host_key",
            f"{TRANSPORT}::test_ssh_takes_hashed_known_hosts",
            f"{FIRE}::test_an_ssh_host_key_that_changes_is_refused_until_root_says_so",
        ),
    },
    5: {
        "servers that stall or send a byte a second": (
            f"{TRANSPORT}::test_a_server_that_stalls_is_left_after_the_timeout_with_all_processes",
            f"{TRANSPORT}::test_a_fetch_that_stalls_leaves_nothing_and_the_next_one_works",
            f"{TRANSPORT}::test_an_ssh_server_that_stalls_is_left_with_all_processes",
            f"{FIRE}::test_a_byte_a_second_ends_with_the_timeout",
        ),
        "packs that break off": (f"{FIRE}::test_a_pack_that_is_cut_leaves_nothing_and_the_next_fetch_works",),
        "401, 429 with Retry-After, 503": (
            f"{TRANSPORT}::test_http_errors_have_reasons",
            f"{FIRE}::test_what_apache_answers_has_a_reason_and_says_how_long_to_wait",
            "unit/test_source_reasons.py::test_how_long_the_server_asks_to_wait",
            "sim/test_pass_loop.py::test_a_source_that_asks_for_time_gets_it_and_repairs_go_on",
        ),
        "words that a server says beside its answer": (
            f"{FIRE}::test_what_a_server_says_beside_a_pack_chooses_no_reason",
            "unit/test_source_reasons.py::test_a_server_does_not_choose_its_reason",
        ),
        "a captive portal": (f"{TRANSPORT}::test_a_captive_portal_is_no_repository_with_the_ref",),
        "a broken encoding": (f"{FIRE}::test_an_answer_that_is_not_what_its_encoding_says",),
    },
    6: {
        "very many refs, an answer without an end": (
            f"{TRANSPORT}::test_a_flood_of_refs_that_look_like_the_ref_is_cut_off",
            f"{TRANSPORT}::test_a_poll_is_one_connection_of_a_few_hundred_bytes_and_unchanged_means_no_fetch",
            f"{FIRE}::test_an_answer_without_an_end_is_bounded",
        ),
        "packs above the limit": (
            f"{LOCAL}::test_a_pack_that_is_too_large_is_cut_off",
            f"{TRANSPORT}::test_static_files_cannot_fill_the_disk",
            f"{GROWTH}::test_refused_heads_never_fill_the_disk_and_the_watermark_stays",
        ),
        "deltas that unfold, a large blob": (
            f"{FIRE}::test_deltas_that_unfold_into_gigabytes_end_with_a_limit",
            f"{FIRE}::test_a_large_blob_of_nothing_travels_small_and_is_not_read",
        ),
        "wide and deep trees": (
            f"{FIRE}::test_a_tree_of_very_many_entries",
            f"{FIRE}::test_trees_of_ten_thousand_levels",
            f"{LOCAL}::test_a_tree_that_names_itself_many_times_costs_nothing",
        ),
        "a commit with very many parents, or a long message": (
            f"{FIRE}::test_a_commit_that_is_larger_than_any_commit",
        ),
    },
    7: {
        "bundles, alternates, hooks that a server offers": (
            f"{FIRE}::test_other_places_for_bundles_and_objects_are_not_looked_at",
            f"{TRANSPORT}::test_a_folder_of_static_files_is_enough_but_its_alternates_are_not_followed",
        ),
    },
    8: {
        "SHA-256, and a change of the format": (
            f"{TRANSPORT}::test_https_with_a_token_resolves_fetches_and_reads",
            f"{TRANSPORT}::test_a_source_that_changes_its_object_format_is_refused",
        ),
        "collisions of SHA-1": ("unit/test_source_reasons.py::test_words_become_reasons",),
        "damaged and missing objects": (
            f"{LOCAL}::test_objects_that_changed_on_the_disk_are_noticed",
            f"{LOCAL}::test_an_object_that_fails_gits_check_is_not_fetched",
            f"{LOCAL}::test_what_is_not_a_full_id_is_no_commit",
        ),
        "grafts": (f"{FIRE}::test_grafts_in_the_local_repository_change_no_ancestry",),
        "replacements": (f"{LOCAL}::test_a_replacement_at_the_source_is_never_fetched_nor_followed",),
    },
    9: {
        "what a killed fetch leaves": (
            f"{LOCAL}::test_leftovers_of_a_killed_fetch_are_swept_when_opening",
            f"{TRANSPORT}::test_a_killed_agent_takes_its_git_along_and_the_next_one_starts",
            f"{GROWTH}::test_a_rebuild_that_dies_anywhere_converges",
        ),
    },
    10: {
        "a shallow server or repository": (
            f"{TRANSPORT}::test_a_shallow_server_is_refused",
            f"{LOCAL}::test_a_shallow_or_broken_local_repository_is_refused_with_what_to_do",
        ),
        "ancestry that cannot be told": (f"{LOCAL}::test_ancestry_has_five_outcomes",),
    },
    # --- what a repository holds ---
    11: {
        "links in place of manifests and folders": (
            f"{LOCAL}::test_what_cannot_be_a_manifest_is_a_problem_by_path",
            f"{LOCAL}::test_chains_must_be_a_directory_and_the_root_file_a_file",
            f"{SOURCE}::test_a_link_in_place_of_another_hosts_file_stops_nothing_here_ever",
        ),
    },
    12: {
        "submodules": (
            f"{LOCAL}::test_what_cannot_be_a_manifest_is_a_problem_by_path",
            f"{FIRE}::test_submodules_with_options_in_them_are_not_even_stored",
        ),
        "names that git gives a meaning to": (f"{LOCAL}::test_names_that_git_writes_only_when_forced",),
    },
    13: {
        "odd names: dots, backslashes, line feeds, dashes, length, bytes, directions, twins": (
            f"{LOCAL}::test_what_cannot_be_a_manifest_is_a_problem_by_path",
            f"{LOCAL}::test_names_that_git_writes_only_when_forced",
        ),
    },
    14: {
        "attributes, hooks and configuration of a repository": (
            f"{FIRE}::test_hooks_attributes_and_configuration_of_a_repository_do_nothing",
            f"{LOCAL}::test_nothing_of_the_parents_environment_reaches_git",
        ),
        "pointers of git LFS": (f"{HOSTILE}::test_a_pointer_of_git_lfs_is_no_manifest_and_no_package",),
    },
    15: {
        "modes other than that of a plain file": (
            f"{LOCAL}::test_what_cannot_be_a_manifest_is_a_problem_by_path",
            f"{ARCHIVE}::test_headers_that_say_more_than_name_and_size_are_refused",
        ),
    },
    16: {
        "names that leave the place": (
            f"{ARCHIVE}::test_names_with_folders_or_control_characters_are_refused",
            f"{ARCHIVE}::test_a_path_in_an_extended_header_is_refused",
        ),
        "links, devices, sparse files": (f"{ARCHIVE}::test_what_is_no_regular_file_is_refused",),
        "bombs": (
            f"{ARCHIVE}::test_a_bomb_is_not_unpacked",
            f"{ARCHIVE}::test_too_many_members_are_refused",
            f"{ARCHIVE}::test_a_size_beyond_the_limit_or_the_end_is_refused",
        ),
        "duplicates, truncation, concatenation, nesting": (
            f"{ARCHIVE}::test_a_name_that_is_there_twice_is_refused",
            f"{ARCHIVE}::test_a_damaged_stream_is_refused",
            f"{ARCHIVE}::test_a_damaged_tar_is_refused",
        ),
    },
    # --- manifests ---
    17: {
        "tags, anchors, aliases, merge keys, duplicates, encodings": (
            f"{YAML}::test_what_is_not_plain_is_refused_with_its_place",
            f"{YAML}::test_a_million_laughs_cost_nothing",
        ),
        "types that other readers guess": (f"{YAML}::test_scalars_have_the_types_of_json_and_nothing_else",),
        "depth and size": (
            f"{YAML}::test_depth_is_limited_without_recursion",
            f"{YAML}::test_the_number_of_values_and_documents_is_limited",
        ),
        "empty documents, unknown keys, unknown versions, no mapping": (
            f"{YAML}::test_several_documents_have_positions_in_their_file",
            f"{CHAINS}::test_what_is_wrong_in_a_chain_is_said_once_and_in_place",
            f"{CHAINS}::test_what_is_no_chain_is_refused",
        ),
        "any bytes": ("properties/test_manifest_documents.py::test_any_bytes_are_read_or_refused_with_a_place",),
    },
    18: {
        "one faulty file and the other hosts": (
            f"{PARSE}::test_a_fault_stops_the_hosts_that_the_file_selects_and_no_other",
            f"{SOURCE}::test_a_broken_file_of_another_host_stops_nothing_here_ever",
            "properties/test_manifest_documents.py::test_what_does_not_concern_a_host_never_stops_it",
        ),
        "patterns that take for ever": (
            "properties/test_manifest_globs.py::test_any_text_is_a_glob_or_an_error_and_matching_ends",
            f"{BUNDLES}::test_a_hostile_identity_cannot_make_a_glob_slow",
        ),
    },
    19: {"dependencies, overlays, substitution": NO_TEMPLATES},
    20: {
        "names and priorities twice": (
            f"{PARSE}::test_a_chain_name_stands_once",
            f"{PARSE}::test_chains_that_can_meet_need_different_priorities",
        ),
        "conflicting modes and ends": (f"{PARSE}::test_chains_on_one_hook_agree_in_mode_and_end",),
        "interfaces that are absent, come later, are renamed, lie elsewhere": (
            f"{APPLY}::test_interfaces_that_come_go_and_change_their_names_are_followed",
            f"{APPLY}::test_a_namespace_that_does_not_exist_yet_is_pending",
        ),
        "more programs than a chain takes": (
            f"{PARSE}::test_chains_on_one_hook_have_33_members_together",
            CASE.format("more members than tail calls are refused"),
        ),
    },
    21: {
        "selectors that mean nobody or everybody": (
            f"{PARSE}::test_a_host_that_nothing_selects_gets_nothing",
            f"{PARSE}::test_a_mistyped_selector_means_every_host_and_stops_every_host",
            f"{SELECT}::test_a_selector_means_hosts_by_label_and_name",
        ),
        "short and full host names": (f"{SELECT}::test_a_short_host_name_is_not_found_by_a_pattern_with_a_domain",),
        "a host that changes its group": (f"{APPLY}::test_other_labels_take_programs_off_only_within_the_guardrail",),
        "two hosts of one name": NoFeature("a name selects and identifies nobody: both hosts get the same"),
    },
    22: {
        "nothing there, or a folder under another name": (
            f"{APPLY}::test_an_empty_set_of_chains_is_refused_unless_the_repository_allows_it",
            f"{HOSTILE}::test_a_folder_that_was_renamed_is_no_order_to_detach",
        ),
        "a file that goes while its program is attached": (
            CASE.format("nothing declared takes everything off, and its state"),
            f"{PARSE}::test_a_file_may_be_renamed_while_others_change",
        ),
        "a commit that touches everything": (
            f"{APPLY}::test_a_commit_that_removes_too_much_needs_a_confirmation_of_exactly_that_plan",
        ),
    },
    # --- signatures ---
    23: {
        "unsigned, or signed by somebody else": (
            f"{COMMITS}::test_a_signed_tip_says_nothing_about_its_unsigned_parent",
            f"{COMMITS}::test_an_unsigned_commit_is_refused_with_the_ways_of_merging_that_work",
            f"{COMMITS}::test_a_key_that_is_not_allowed_is_refused_although_ssh_keygen_says_good",
            f"{SOURCE}::test_an_unsigned_commit_in_the_middle_is_refused_by_name",
        ),
        "revoked and expired keys": (
            f"{COMMITS}::test_a_revoked_key_is_refused_as_revoked",
            f"{COMMITS}::test_options_of_the_allowed_signers_hold_at_the_present_time",
        ),
        "a signature on a tag only": (f"{LOCAL}::test_a_commit_that_is_none_is_refused",),
        "other bytes, other spellings, extra headers": (
            f"{COMMITS}::test_a_signature_over_other_bytes_is_refused",
            f"{COMMITS}::test_a_commit_that_is_written_another_way_is_refused",
            "unit/test_trust_sshsig.py::test_a_changed_commit_is_refused_or_another_payload",
        ),
        "another namespace": (f"{COMMITS}::test_a_signature_for_another_namespace_is_refused",),
        "identities that look alike": (
            f"{COMMITS}::test_a_principal_is_compared_whole",
            f"{BUNDLES}::test_globs_of_identities_are_anchored_and_stop_at_slashes",
            f"{SIGSTORE}::test_an_identity_is_matched_in_full",
        ),
    },
    24: {
        "no log entry, another log, another proof": (
            f"{BUNDLES}::test_a_certificate_without_a_verified_time_or_a_log_entry_is_refused",
            f"{SIGSTORE}::test_a_promise_by_another_log_is_refused",
            f"{SIGSTORE}::test_a_proof_for_another_hash_is_refused",
        ),
        "another digest, issuer or subject": (
            f"{BUNDLES}::test_an_altered_artifact_is_refused",
            f"{SIGSTORE}::test_an_issuer_is_matched_exactly",
            "sim/test_pass_packages.py::test_a_package_with_another_packages_bundle_refuses_the_commit",
        ),
        "times: roots that ended, signatures out of the window": (
            f"{BUNDLES}::test_material_that_ended_before_the_signature_does_not_count",
            f"{SIGSTORE}::test_a_signature_outside_of_the_certificate_is_refused",
            f"{SIGSTORE}::test_a_signature_before_the_material_began_is_refused",
        ),
        "several signatures, one of them bad": (
            f"{SIGSTORE}::test_one_bad_stamp_among_good_ones_is_refused",
            f"{BUNDLES}::test_two_log_entries_are_refused",
        ),
        "attestations, envelopes": (f"{BUNDLES}::test_an_attestation_is_no_signature_of_a_package",),
        "a tag that moves after it was signed": NoFeature("manifests name digests, and packages have no tags"),
    },
    25: {
        "merges: which parents count": (
            f"{SOURCE}::test_a_merge_is_taken_when_its_first_parents_are_signed",
            f"{SOURCE}::test_a_merge_that_makes_the_watermark_a_side_line_verifies_its_new_first_parents",
            f"{LOCAL}::test_a_watermark_behind_the_second_parent_hides_no_commit_of_the_line",
        ),
        "octopus and evil merges": (
            f"{HOSTILE}::test_an_octopus_is_judged_by_its_first_parents",
            f"{HOSTILE}::test_a_merge_that_holds_what_no_parent_had_is_what_its_signer_signed",
        ),
    },
    26: {
        "a commit that brings the policy that allows it": (
            f"{HOSTILE}::test_a_commit_cannot_authorise_itself",
            f"{SOURCE}::test_a_change_of_policy_judges_the_same_head_again",
        ),
    },
    # --- history ---
    27: {
        "older, unrelated, forked, anew": (
            f"{SOURCE}::test_a_forced_push_to_an_older_signed_commit_is_refused",
            f"{SOURCE}::test_an_unrelated_history_with_the_same_signer_is_refused",
            f"{FIRE}::test_rewinds_forks_and_another_repository_behind_the_same_address",
        ),
        "a ref that goes, or another default branch": (
            f"{SOURCE}::test_a_deleted_branch_is_no_empty_set",
            f"{TRANSPORT}::test_a_ref_that_is_gone_and_an_empty_repository",
        ),
        "back and forward": (f"{SOURCE}::test_back_and_forward_again_is_no_way_around",),
        "collected at the server": (f"{FIRE}::test_a_server_that_loses_what_was_applied_cannot_hide_it",),
        "state that is lost": (f"{STATE}::test_lost_state_is_tampering_until_a_commit_is_accepted",),
        "a clock that jumps": (
            f"{SOURCE}::test_a_clock_that_jumps_back_is_no_reason_to_stop",
            f"{OTHERS}::test_a_clock_that_jumps_by_years_changes_nothing_that_runs",
        ),
        "two mirrors that disagree": NoFeature("a host has one source"),
    },
    # --- triggers ---
    28: {
        "bodies, signatures and headers of webhooks": NO_WEBHOOK,
        "requests that are long, slow, nonsense or many": (
            f"{SENSOR}::test_a_request_that_is_too_long_is_cut_off",
            f"{SENSOR}::test_nonsense_is_answered_and_wakes_nobody",
            f"{SENSOR}::test_too_many_clients_are_turned_away_and_slow_ones_disconnected",
        ),
        "triggers that carry content, or come from whom they may not": (
            f"{SENSOR}::test_a_request_is_answered_and_who_asks_is_told_by_the_kernel",
            "sim/test_pass_loop.py::test_what_changes_decisions_needs_uid_0",
            "sim/test_pass_loop.py::test_an_event_of_the_kernel_is_followed_at_once_but_a_flood_costs_no_whole_cpu",
        ),
    },
    # --- kernel and host ---
    29: {
        "the verifier, limits, missing features": (
            f"{LOAD}::test_a_rejected_program_is_summarized_in_one_line_with_the_whole_log",
            f"{APPLY}::test_a_program_that_the_verifier_rejects_attaches_nothing_and_is_not_tried_again",
            CASE.format("a feature that the kernel lacks is said by name"),
            CASE.format("a feature that could not be probed is no reason to refuse"),
            "unit/test_cli_check.py::test_what_a_kernel_must_have",
        ),
        "pins of others, pins that move": (
            "conformance/suite/removing.py::test_a_pin_that_somebody_took_over_is_not_ours_to_remove",
            "conformance/suite/loading.py::test_a_taken_path_fails_and_leaves_nothing",
        ),
        "ids that come back": (
            "conformance/suite/removing.py::test_a_recycled_program_id_is_not_evicted",
            "unit/test_policy.py::test_an_id_that_came_back_is_another_stranger",
        ),
        "others that detach, interfaces that flap": (
            "conformance/suite/switching.py::test_a_switch_of_what_somebody_tampered_with_is_stale",
            f"{ATTACH}::test_an_interface_made_anew_is_another_hook",
        ),
        "no bpffs, or one that is emptied, covered, read-only": (
            f"{GONE}::test_what_was_pinned_is_put_back_by_the_next_pass",
            f"{GONE}::test_a_bpffs_over_ours_hides_pins_until_it_goes",
            f"{GONE}::test_a_bpffs_that_became_read_only_changes_nothing",
            f"{GONE}::test_what_happens_to_bpffs_in_the_middle_of_a_pass_is_mended_by_the_next",
        ),
        "folders above the pins that others own or that are links": (
            f"{PINS}::test_a_directory_that_others_may_change_is_neither_used_nor_believed",
        ),
        "capabilities that are missing": ("e2e/test_systemd.py::test_each_capability_of_the_unit_is_needed",),
        "a limit on locked memory": NoFeature("since Linux 5.11 programs and maps are no locked memory"),
        "programs of systemd, Cilium and others": (
            "unit/test_config_parse.py::test_the_sets_that_ship_say_why_and_who",
            "unit/test_policy.py::test_a_rule_tolerates_what_fulfils_all_of_its_conditions",
        ),
    },
    30: {
        "two agents": (
            f"{STATE}::test_a_second_agent_is_refused",
            "e2e/test_story_source.py::test_two_passes_never_work_at_once",
            f"{OTHERS}::test_of_several_at_once_one_works_and_the_others_say_that_they_may_not",
        ),
        "death at every step": (
            f"{KILL}::test_a_kill_at_a_point_of_every_kind",
            f"{KILL}::test_a_kill_and_another_one_in_the_recovery",
            f"{FIRST}::test_kills_in_the_first_pass_and_in_the_last",
            "kernel/killed/test_points.py"
            "::test_first_passes_changes_and_teardowns_change_nothing_outside_of_the_points",
            f"{STATE}::test_an_update_that_is_killed_anywhere_converges",
            f"{PROPERTIES}::test_a_crash_at_any_point_leaves_nothing_behind_after_the_next_passes",
            f"{GROWTH}::test_a_rebuild_that_dies_anywhere_converges",
        ),
        "disks that are full, refuse or became read-only": (
            f"{ERRNO}::test_a_failure_of_every_kind_of_call",
            f"{FIRST}::test_failures_in_the_first_pass_and_in_the_last",
            f"{STATE}::test_a_full_disk_is_an_error_and_touches_nothing",
            f"{STATE}::test_a_disk_that_fills_up_in_the_middle_leaves_one_of_both_states",
            f"{TRANSPORT}::test_a_full_disk_is_said_and_leaves_nothing",
            f"{LOCAL}::test_a_disk_that_refuses_is_said",
            f"{GROWTH}::test_a_rebuild_that_fails_anywhere_leaves_the_repository_as_it_was",
        ),
        "limits on descriptors": (
            f"{ERRNO}::test_a_process_that_may_open_only_a_few_descriptors",
            "sim/test_attacks.py::test_an_agent_that_cannot_watch_interfaces_goes_on_by_the_clock",
            f"{PROPERTIES}::test_a_failure_at_any_point_undoes_the_pass_or_keeps_it_and_the_next_converges",
        ),
    },
    # --- what is put out ---
    31: {
        "secrets in URLs, arguments, environments, git's words, errors": (
            f"{URL}::test_urls_that_are_refused_without_repeating_a_secret",
            f"{TRANSPORT}::test_the_token_is_in_no_argument_list_and_no_environment",
            f"{TRANSPORT}::test_what_the_server_says_is_redacted_and_cleaned",
            f"{FIRE}::test_a_token_that_rotates_is_read_again_at_each_poll",
            "e2e/test_story_source.py::test_https_with_a_private_authority_and_a_token",
            "e2e/test_story_source.py::test_credentials_rotate_while_the_agent_runs_and_stand_nowhere",
            "e2e/test_story_review.py::test_a_record_holds_nothing_secret_and_an_older_reconciler_refuses_it",
            "unit/test_source_reasons.py::test_secrets_control_characters_and_the_servers_words_are_not_repeated",
        ),
        "escapes, links and directions in tables, metrics, logs and records": (
            f"{HOSTILE}::test_what_a_commit_says_of_itself_reaches_nobody_raw",
            f"{HOSTILE}::test_names_of_files_reach_nobody_raw",
            f"{STATUS}::test_escapes_and_directions_are_taken_out",
            "unit/test_cli_validate.py::test_what_others_wrote_does_not_reach_the_terminal_raw",
        ),
        "manifests of this host past the signature policy": NoFeature("`apply` takes no files, only the source"),
        "labels of metrics without a bound": (
            f"{STATUS}::test_labels_are_escaped_and_never_hold_a_commit",
            f"{HOSTILE}::test_a_commit_is_no_label_of_a_metric",
        ),
    },
}


@functools.cache
def functions(file: str) -> frozenset[str]:
    """Names of the test functions of a module."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_every_number_is_there_once_and_in_order() -> None:
    assert list(TABLE) == list(range(1, 32))
    assert all(rows for rows in TABLE.values())


@pytest.mark.parametrize(("number", "row"), [(number, row) for number, rows in TABLE.items() for row in rows])
def test_every_row_names_tests_that_exist_or_what_does_not(number: int, row: str) -> None:
    found = TABLE[number][row]
    if isinstance(found, NoFeature):
        assert found.why
        return
    assert found
    for each in found:
        file, _, name = each.partition("::")
        assert (TESTS / file).is_file(), each
        if name:
            assert name.startswith("test_"), each
            assert name in functions(file), each
        else:
            assert file.startswith("cases/plan/"), each


def test_a_name_that_is_not_there_would_be_missed() -> None:
    assert "test_every_number_is_there_once_and_in_order" in functions("unit/test_bad_inputs.py")
    assert "test_nothing_of_that_name" not in functions("unit/test_bad_inputs.py")
