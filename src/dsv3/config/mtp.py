"""`mtp`: multi-token prediction."""

from typing import Literal

from dsv3.config.section import Section, field


class MtpConfig(Section):
    """Multi-token prediction (report section 2.2)."""

    num_nextn_predict_layers: Literal[0] = field("Depth of the MTP module; 0 is off.")
