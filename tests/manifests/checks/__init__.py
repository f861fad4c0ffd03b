"""A linter of what `kubectl apply` would send: pure functions from built objects to findings, one module a theme.

`EVERY` holds for any build, a component over the base among them; `WHOLE` for a system that is to be applied as it is.
A finding names the object and says what is wrong. Each check is held to an example that it must catch
(`test_checks.py`). What needs more than the objects is tested beside: schemas, arguments, rights, flows.
"""

from collections.abc import Callable

from tests.manifests.building import Build
from tests.manifests.checks import (
    admission,
    bounds,
    images,
    naming,
    ports,
    references,
    security,
    selecting,
    standard,
    stopping,
)

Check = Callable[[Build], list[str]]

EVERY: tuple[Check, ...] = (
    admission.budgets_and_scales_hold_together,
    admission.claims_and_services_hold_together,
    admission.pods_hold_together,
    admission.policies_hold_together,
    admission.routes_hold_together,
    admission.workloads_hold_together,
    bounds.numbers_are_in_range,
    bounds.objects_fit,
    bounds.words_are_known,
    images.an_image_has_one_version,
    images.images_are_pinned,
    images.images_are_pulled_once,
    images.our_image_is_this_version,
    naming.everything_is_labelled,
    naming.labels_are_valid,
    naming.names_are_valid,
    naming.namespaces_are_declared,
    naming.namespaces_come_first,
    naming.namespaces_enforce_restricted,
    naming.nothing_is_there_twice,
    naming.only_gateways_bear_the_gateways_name,
    naming.selectors_are_valid,
    ports.addresses_are_of_services,
    ports.monitors_find_ports,
    ports.ports_of_a_pod_are_distinct,
    ports.probes_ask_ports,
    ports.routes_lead_to_services,
    ports.services_lead_to_ports,
    references.autoscalers_scale,
    references.bindings_bind,
    references.claims_are_there,
    references.claims_can_be_mounted_by_all,
    references.config_maps_and_secrets_are_there,
    references.config_maps_are_used,
    references.files_of_a_volume_do_not_cover_each_other,
    references.files_that_are_named_are_mounted,
    references.service_accounts_are_there,
    references.triggers_have_their_authentication,
    references.variables_are_defined_before_use,
    references.volumes_are_mounted,
    security.files_are_the_pods_own,
    security.no_pod_has_links,
    security.resources_are_set,
    security.rights_are_narrow,
    security.root_is_read_only,
    security.scratch_is_bounded,
    security.secrets_are_no_arguments,
    security.secrets_are_not_written_down,
    security.services_stay_inside,
    security.tokens_are_where_the_api_is_asked,
    selecting.budgets_do_not_overlap,
    selecting.budgets_find_pods_of_one_kind,
    selecting.network_policies_find_pods,
    selecting.no_two_workloads_select_the_same_pods,
    selecting.pods_spread_from_their_own,
    selecting.services_find_pods_of_one_kind,
    selecting.workloads_select_their_own_pods,
    standard.pods_are_restricted,
    stopping.budgets_leave_a_way,
    stopping.engines_may_finish,
    stopping.engines_say_how_they_end,
    stopping.gateways_may_drain,
    stopping.liveness_is_more_patient_than_readiness,
    stopping.loading_is_within_the_deadline,
    stopping.rollouts_leave_a_way,
    stopping.rollouts_of_gateways_lose_none,
    stopping.what_listens_is_probed,
)
WHOLE: tuple[Check, ...] = (stopping.drains_spare_streams, stopping.engines_finish_their_streams)
"""The pools' settings stand in an overlay's configuration: a component over the base has none."""


def named(check: Check) -> str:
    """How a test calls it: ports.probes_ask_ports."""
    return f"{check.__module__.rpartition('.')[2]}.{check.__name__}"
