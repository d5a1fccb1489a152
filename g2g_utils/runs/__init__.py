"""Runs on disk: files that survive crashes, records of what was made, and the run at work."""

from g2g_utils.runs.files import atomic as atomic
from g2g_utils.runs.files import digest as digest
from g2g_utils.runs.files import disk_is_full as disk_is_full
from g2g_utils.runs.files import file_digest as file_digest
from g2g_utils.runs.files import last_line as last_line
from g2g_utils.runs.files import lock as lock
from g2g_utils.runs.files import once as once
from g2g_utils.runs.files import read_json as read_json
from g2g_utils.runs.files import write_json as write_json
from g2g_utils.runs.records import git_state as git_state
from g2g_utils.runs.records import hashes as hashes
from g2g_utils.runs.records import intact as intact
from g2g_utils.runs.records import leads_to_product as leads_to_product
from g2g_utils.runs.records import processes as processes
from g2g_utils.runs.records import processor as processor
from g2g_utils.runs.records import provenance as provenance
from g2g_utils.runs.records import rank as rank
from g2g_utils.runs.records import record as record
from g2g_utils.runs.records import settings_id as settings_id
from g2g_utils.runs.records import sound_record as sound_record
from g2g_utils.runs.run import Run as Run
from g2g_utils.runs.run import report as report
