"""Kubernetes discovery on real sockets, against the stand-in API server of `tests.apiserver`.

The failure cases of a cluster (C), and the faults of the project's list (F) that are discovery's, each with the tests
that show what is promised. `test_table` keeps the names true.

C1  Pending, Running, Ready
    - test_meaning.test_a_pod_is_ready_at_its_ready_condition_and_not_before
    - test_gateway.test_a_pod_gets_work_as_soon_as_it_is_ready_and_has_told_its_models
C2  readiness flaps
    - test_meaning.test_a_pod_whose_readiness_flaps_stays_the_same_pod
    - test_gateway.test_a_flap_leaves_streams_and_connections_as_they_are
C3  graceful deletion, still Ready, a deletionTimestamp in the future
    - test_meaning.test_a_deletion_that_lies_in_the_future_counts_from_now
    - test_gateway.test_a_pod_that_leaves_gets_no_new_work
    - test_gateway.test_a_stream_runs_to_its_end_on_a_pod_that_leaves
C4  forced deletion, node loss
    - test_meaning.test_a_pod_that_is_deleted_without_a_warning_is_gone
    - test_gateway.test_a_request_without_an_answer_is_repeated_elsewhere_when_its_node_is_lost
    - test_gateway.test_a_stream_that_has_begun_ends_with_an_error_when_its_node_is_lost
C5  the label is taken away, and given back
    - test_meaning.test_a_pod_that_loses_its_label_is_gone_and_is_back_with_it
    - test_gateway.test_a_pod_that_comes_back_with_its_label_has_its_counts_still
C6  SIGKILL of the API server (F44)
    - test_api_server.test_a_killed_server_takes_no_pod_with_it_and_is_caught_up_with
    - test_api_server.test_attempts_at_a_dead_server_grow_rare
    - test_gateway.test_requests_are_served_while_the_api_server_is_away_and_after
C7  SIGTERM of the API server: a mute watch
    - test_api_server.test_a_terminated_server_is_mute_and_the_next_one_is_asked_when_it_ends
    - test_api_server.test_a_mute_watch_is_given_up_and_the_pods_listed_anew
    - test_gateway.test_a_pod_that_dies_while_the_api_server_is_mute_fails_no_request
C8  410 as an event (F41)
    - test_api_server.test_410_as_an_event_leads_to_a_list_that_takes_away_what_is_gone
    - test_api_server.test_410_as_an_event_in_an_open_watch_leads_to_a_list
C9  410 as a status
    - test_api_server.test_410_as_a_status_of_the_watch_leads_to_a_list
    - test_api_server.test_410_in_the_middle_of_a_list_begins_it_anew
    - test_api_server.test_410_for_every_second_page_is_no_loop_without_an_end
C10 410 for every watch (F41)
    - test_api_server.test_a_server_that_refuses_every_watch_is_asked_ever_more_rarely
C11 a version from the future; versions that go backwards (F41)
    - test_api_server.test_a_watch_from_the_future_is_silent_and_ends_in_a_list
    - test_api_server.test_a_gateway_timeout_is_waited_out_as_long_as_it_says
    - test_api_server.test_a_server_restored_from_a_backup_is_believed
    - test_api_server.test_a_version_that_goes_backwards_in_a_watch_leads_to_a_list
C12 a frozen API server, a half-open connection (F42)
    - test_api_server.test_a_frozen_server_makes_the_pods_stale_and_takes_none
    - test_api_server.test_a_mute_watch_is_given_up_and_the_pods_listed_anew
C13 a quiet namespace in a busy cluster
    - test_api_server.test_a_quiet_namespace_in_a_busy_cluster_needs_no_new_list
    - test_api_server.test_a_watch_that_bookmarks_keep_alive_is_neither_stale_nor_given_up
C14 a clean end at timeoutSeconds
    - test_api_server.test_a_watch_that_ends_in_time_goes_on_where_it_was
    - test_api_server.test_a_watch_that_ends_at_once_is_not_begun_without_a_pause
C15 a token rotated or expired
    - test_access.test_a_rotated_token_is_used_by_the_next_request
    - test_access.test_a_token_that_expires_before_its_heir_is_there_is_read_again
    - test_access.test_a_401_is_answered_by_what_the_files_say_now_and_once
C16 rights missing at the start, or taken away
    - test_access.test_a_right_that_is_missing_at_the_start_is_named_and_awaited
    - test_access.test_a_right_that_is_taken_away_later_takes_no_pod_away
    - test_gateway.test_a_gateway_without_rights_says_which_and_recovers_without_a_restart
C17 lines cut, joined, long, or garbage
    - test_api_server.test_events_may_be_cut_anywhere
    - test_api_server.test_an_event_of_250_kilobytes_is_an_event
    - test_api_server.test_a_line_that_is_no_event_leads_to_a_list_and_hurts_nobody
    - test_api_server.test_a_line_cut_by_the_end_of_the_watch_leads_to_a_list
C18 unknown events, bookmarks, errors of other codes
    - test_api_server.test_an_event_of_an_unknown_type_is_passed_over
    - test_api_server.test_an_error_event_of_any_code_leads_to_a_list
C19 an address or a name that another pod takes over
    - test_meaning.test_a_pod_replaced_under_its_name_is_another_pod
    - test_meaning.test_a_pod_replaced_while_nobody_heard_is_another_pod
    - test_rounds.test_the_pod_of_a_name_inherits_nothing_of_the_one_before
    - test_rounds.test_an_address_that_another_pod_takes_over_is_asked_anew
    - test_gateway.test_a_pod_replaced_under_its_name_is_asked_anew
C20 two pods with one address, none, IPv6
    - test_meaning.test_of_two_pods_with_one_address_only_the_younger_may_be_asked
    - test_meaning.test_a_pod_without_an_address_is_not_ready_whatever_its_condition_says
    - test_meaning.test_an_ipv6_address_stands_in_brackets_where_a_port_follows
C21 /v1/models: slow, an error, huge, empty, changing
    - test_gateway.test_a_pod_that_does_not_tell_its_models_hurts_nobody_else
    - test_gateway.test_pods_of_one_pool_may_serve_different_models
    - test_rounds.test_an_adapter_that_is_loaded_is_served_and_one_that_is_unloaded_is_not
    - test_rounds.test_a_model_that_a_pod_no_longer_lists_is_taken_from_it_alone
C22 1,000 pods, 1,000 events in a burst
    - test_meaning.test_a_thousand_pods_come_in_pages_and_a_thousand_events_come_together
    - test_gateway.test_requests_stay_quick_while_a_thousand_pods_change
C23 an empty list that succeeds, a list that fails
    - test_api_server.test_a_list_that_succeeds_and_is_empty_is_believed
    - test_api_server.test_a_list_that_fails_takes_no_pod_away
    - test_gateway.test_a_model_whose_pods_are_gone_answers_503_and_one_that_nobody_knows_404
C24 a namespace deleted and made again; a selector that matches nothing
    - test_api_server.test_a_namespace_that_is_deleted_and_made_again_is_followed_all_the_time
    - test_api_server.test_a_selector_that_matches_nothing_is_a_list_of_nothing
C25 CrashLoopBackOff, Failed, Succeeded, Unknown (F45)
    - test_meaning.test_only_a_ready_condition_that_is_true_counts
    - test_meaning.test_a_pod_whose_address_is_taken_from_it_is_out_at_once
C26 ports
    - test_meaning.test_the_port_is_the_annotated_one_else_the_one_called_http_else_8000
    - test_meaning.test_the_ports_of_init_containers_are_nobodys
    - test_meaning.test_a_port_that_is_none_refuses_the_pod_and_says_so
C27 the gateway ends during a watch
    - test_access.test_following_ends_at_once_and_leaves_nothing_open
    - test_gateway.test_a_gateway_ends_during_a_watch_at_once_and_leaves_nothing_open
C28 which cluster; files that are missing; proxies
    - test_access.test_without_a_cluster_the_message_says_what_to_do
    - test_access.test_a_kubeconfig_named_goes_before_the_service_account
    - test_access.test_credentials_that_vanish_at_run_time_are_awaited
    - test_access.test_a_proxy_that_the_environment_names_is_not_asked
F40 a DELETED that nobody heard
    - test_api_server.test_a_missed_deletion_is_mended_by_the_next_full_list
    - test_api_server.test_a_deletion_while_the_watch_is_away_is_heard_with_the_next_one
F43 the API server is away at the start
    - test_api_server.test_a_server_that_is_away_at_the_start_is_awaited
    - test_gateway.test_a_gateway_without_its_first_list_is_not_ready_and_then_is
F47 one pod's /v1/models hangs
    - test_gateway.test_a_pod_whose_models_hang_delays_nobody
F58 a malicious pod
    - test_meaning.test_a_pod_may_not_claim_an_address_that_no_pod_has
    - test_meaning.test_neither_the_api_server_nor_the_gateway_can_be_a_pod
    - test_meaning.test_a_pod_of_another_namespace_is_not_even_seen
    - test_gateway.test_a_refused_pod_is_told_of_once_and_never_asked
    - test_gateway.test_a_port_behind_which_no_vllm_listens_never_gets_a_request
F59 a pod that claims models
    - test_gateway.test_a_pod_that_lists_another_pools_model_gets_none_of_its_requests
    - test_gateway.test_while_the_owner_of_a_model_is_away_another_pool_does_not_inherit_it
    - test_gateway.test_only_so_many_names_of_only_so_much_length_are_taken
    - test_gateway.test_a_hundred_thousand_names_are_no_answer
    - test_gateway.test_a_pod_serves_no_more_than_its_annotation_lets_it
"""
