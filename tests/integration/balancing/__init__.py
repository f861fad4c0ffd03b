"""What a gateway owes its callers while pods fail, hang, are busy, come and go: scenes on real sockets.

The faults of the project's list (F) that are balancing's, each with the tests that show what is promised. `test_table`
keeps the names true; they are relative to `tests.integration`. Every scene here ends with the same check
(`scenes.scene`): nothing is in flight, nobody waits, no task and no file is left, and each request ended once.

Before the first byte.

F1   a pod takes the request and never answers: its caller hears so at the deadline, no second pod is asked
     - balancing.test_ejection.test_a_pod_that_never_answers_costs_its_caller_the_deadline_and_is_ejected
     - test_streams.test_comments_do_not_feed_the_idle_deadline_nor_commit
F2   a pod refuses connections
     - balancing.test_ejection.test_a_pod_that_refuses_connections_is_ejected_and_no_caller_notices
     - balancing.test_budget.test_refused_connections_do_not_draw_on_the_budget
     - test_retries.test_refused_connections_are_tried_on_two_more_pods_and_then_it_is_no_ready_pod
F3   a pod's network swallows connections
     - test_retries.test_a_pod_that_swallows_connections_costs_no_more_than_the_connect_deadline
F4   a fresh connection is closed without a byte
     - test_retries.test_what_the_table_repeats_is_repeated_once_on_another_pod
     - test_retries.test_the_second_failure_is_the_last
F5   an idle connection is closed as a request leaves on it
     - balancing.test_ejection.test_whenever_a_pod_closes_an_idle_connection_the_next_request_is_answered
     - test_retries.test_a_connection_that_the_pod_closed_while_it_was_idle_is_no_failure
F6   a connection is reset before the head
     - balancing.test_quarantine.test_a_broken_connection_of_a_pod_that_lives_is_no_death
     - test_retries.test_what_the_table_repeats_is_repeated_once_on_another_pod
F7   a request that kills whichever pod works on it
     - balancing.test_quarantine.test_a_request_that_kills_pods_is_not_sent_to_a_third
     - balancing.test_quarantine.test_neither_its_caller_nor_anybody_else_suffers_from_a_quarantined_request
     - balancing.test_quarantine.test_what_a_pod_said_of_its_health_before_it_died_is_not_believed_after
     - balancing.test_quarantine.test_a_body_is_told_apart_by_its_caller
     - balancing.test_quarantine.test_a_body_that_a_pod_has_answered_since_is_let_go
     - balancing.test_quarantine.test_streams_that_had_begun_when_their_pods_died_count_as_well
     - balancing.test_quarantine.test_what_a_terminating_pod_takes_with_it_is_not_the_request_s_fault
     - balancing.test_quarantine.test_a_quarantine_ends
F8   an answer that is not HTTP
     - balancing.test_ejection.test_three_failures_in_a_row_eject_a_pod
     - test_streams.test_junk_from_a_pod_is_a_502_and_its_connection_not_used_again
F9   half a status line, and then nothing
     - balancing.test_ejection.test_half_a_status_line_and_then_nothing_ends_at_the_deadline
F11  interim answers without end
     - test_streams.test_sixteen_interim_answers_are_dropped
     - test_streams.test_junk_from_a_pod_is_a_502_and_its_connection_not_used_again
F12  a redirect
     - balancing.test_ejection.test_a_redirect_is_not_followed_nor_a_second_pod_asked
F13  a pod refuses the gateway's own key
     - test_refusals.test_a_pods_other_errors_are_put_into_our_shape
F14  a plain 500
     - test_retries.test_what_the_table_does_not_repeat_is_not
     - test_refusals.test_a_pods_other_errors_are_put_into_our_shape
F15  500s for one caller's requests only
     - balancing.test_ejection.test_one_caller_s_bad_requests_eject_no_pod
F16  one pod is busy, or all are
     - balancing.test_ejection.test_a_busy_pod_rests_and_a_free_one_answers
     - balancing.test_ejection.test_when_all_pods_are_busy_it_is_said_with_when_to_come_again
F18  an answer that can be read in two ways
     - test_streams.test_junk_from_a_pod_is_a_502_and_its_connection_not_used_again
F20  an answer that is no JSON
     - test_streams.test_junk_from_a_pod_is_a_502_and_its_connection_not_used_again

Inside a stream.

F22  a clean end without a finish reason, or without its last event
     - test_streams.test_a_cut_stream_says_so
F23  a stream whose end is its connection's, cut
     - test_streams.test_a_close_delimited_stream_is_whole_only_with_its_done
F24  closed inside a chunk
     - test_streams.test_a_cut_stream_says_so
F25  reset
     - test_streams.test_a_cut_stream_says_so
     - balancing.test_ejection.test_three_failures_in_a_row_eject_a_pod
F26  a pod is killed with 200 of 600 streams
     - rollout.test_pods.test_a_killed_pod_costs_exactly_its_own_streams_and_they_are_told_within_a_second
F27  silence after the first event; of a pod on its way down, or stuck as a whole, for far less
     - test_streams.test_silence_after_the_first_event_is_told_after_the_idle_deadline
     - balancing.test_silence.test_what_hangs_at_a_pod_whose_port_is_closed_is_given_up_soon
     - balancing.test_silence.test_streams_that_hang_at_a_terminating_pod_whose_health_is_good_are_given_up_as_well
     - balancing.test_silence.test_a_pod_that_is_gone_from_the_fleet_is_held_to_the_same
     - balancing.test_silence.test_a_pod_whose_engine_is_stuck_is_ejected_and_what_waits_there_is_answered_elsewhere
     - balancing.test_silence.test_one_long_prompt_alone_is_waited_for
     - balancing.test_silence.test_a_pod_that_still_speaks_is_not_stuck_however_long_others_wait_there
     - balancing.test_silence.test_a_client_that_does_not_read_says_nothing_of_its_pod
F28  a stream that drips
     - balancing.test_silence.test_a_stream_that_drips_is_whole_in_the_end
F29  a pod's own error event
     - test_streams.test_a_pods_own_error_event_is_relayed_once_and_ours_not_added
     - balancing.test_ejection.test_three_failures_in_a_row_eject_a_pod
F30  chunks that lie about their size
     - test_streams.test_a_cut_stream_says_so

Pods that come, go, and differ.

F48  every pod is restarted, one after the other
     - rollout.test_pods.test_a_rolling_restart_of_pods_that_finish_their_streams_goes_unnoticed
     - rollout.test_pods.test_a_rolling_restart_of_pods_that_hang_cuts_only_what_had_begun_and_says_so_soon
     - balancing.test_silence.test_a_pod_that_drains_properly_is_left_to_finish
     - balancing.test_silence.test_a_terminating_pod_gets_nothing_new_and_its_500s_go_to_another_pod
F51  no pod is ready
     - balancing.test_waiting.test_without_a_ready_pod_it_is_said_at_once
     - balancing.test_waiting.test_requests_for_a_pool_without_pods_are_held_until_one_comes_and_each_is_answered_once
     - balancing.test_waiting.test_a_request_is_held_for_a_pod_that_comes_no_longer_than_its_pool_says
F52  one of three is ejected, one is not ready
     - balancing.test_ejection.test_with_too_few_pods_left_an_ejected_one_is_used_and_that_ends_by_itself
     - balancing.test_ejection.test_panic_never_reaches_for_a_pod_that_terminates
     - balancing.test_ejection.test_never_more_than_half_of_a_pool_is_out_and_never_the_only_pod
F53  a pod that comes and goes
     - balancing.test_ejection.test_a_pod_that_comes_and_goes_is_out_ever_longer_and_no_caller_notices
     - balancing.test_ejection.test_an_ejected_pod_comes_back_by_its_health_a_trial_and_a_growing_share
     - balancing.test_ejection.test_a_pod_whose_health_is_bad_stays_out_and_one_that_fails_its_trial_goes_again
F54  a pod that is four times as slow
     - balancing.test_ejection.test_a_slow_pod_gets_less_than_half_of_its_share_and_is_not_ejected
F55  a pod that fails at once whatever it is asked
     - balancing.test_ejection.test_a_black_hole_behind_one_shared_key_is_found_soon_and_attracts_nothing
     - balancing.test_ejection.test_a_pod_that_fails_two_callers_is_sick_though_no_other_pod_answers_them
F56  a new pod beside warm ones
     - balancing.test_ejection.test_a_new_pod_is_not_given_all_that_waits

Clients, and many at once.

F73  a client leaves: while it waits, between two tries, anywhere
     - balancing.test_waiting.test_a_client_that_leaves_the_line_frees_its_place_at_once_and_reaches_no_pod
     - balancing.test_waiting.test_a_client_that_leaves_between_two_tries_is_not_sent_again
     - balancing.test_waiting.test_a_client_that_leaves_while_its_second_try_waits_for_room_is_not_sent_again
     - balancing.test_ejection.test_clients_that_leave_say_nothing_of_the_pod
     - test_leaving.test_a_client_that_leaves_before_the_first_byte_frees_the_pod
     - test_leaving.test_a_client_that_leaves_between_bytes_frees_the_pod
F108 every pod is busy, and every caller tries again
     - balancing.test_budget.test_when_all_pods_are_busy_their_callers_retries_do_not_multiply
     - balancing.test_budget.test_many_failures_at_once_are_not_all_tried_again
     - balancing.test_budget.test_second_attempts_that_wait_for_room_are_of_the_budget_as_well
"""
