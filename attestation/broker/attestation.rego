# The broker's default attestation policy. Each part is affirming only if reference values say so: a value that is
# missing makes the evidence not affirming. Names of reference values are those of Trustee's default policy, and ours
# init_data, snp_minimum_tcb and tpm_pcrNN.
package policy

import rego.v1

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"configuration": configuration,
}

# AR4SI: 33 code that is not known, 97 hardware that is not known, 36 a configuration that is not known.
default executables := 33

default hardware := 97

default configuration := 36

known(name, value) if {
	allowed := query_reference_value(name)
	is_array(allowed)
	value in allowed
}

# The configuration of a pod, with its policy, is its initdata.
initdata if known("init_data", input.init_data)

# AMD SEV-SNP. Patch levels: either each is a member of its list, or at least the minimum of the processor's line.
executables := 3 if known("snp_launch_measurement", input.snp.measurement)

hardware := 2 if {
	known("snp_bootloader", input.snp.reported_tcb_bootloader)
	known("snp_microcode", input.snp.reported_tcb_microcode)
	known("snp_snp_svn", input.snp.reported_tcb_snp)
	known("snp_tee_svn", input.snp.reported_tcb_tee)
}

hardware := 2 if {
	minimum := query_reference_value("snp_minimum_tcb")[input.snp.product]
	count(minimum) > 0
	every part, level in minimum {
		input.snp[concat("", ["reported_tcb_", part])] >= level
	}
}

configuration := 2 if {
	input.snp.policy_debug_allowed == false
	input.snp.policy_migrate_ma == false
	input.snp.vmpl == 0
	initdata
}

# Intel TDX.
executables := 3 if {
	known("mr_td", input.tdx.quote.body.mr_td)
	known("rtmr_1", input.tdx.quote.body.rtmr_1)
	known("rtmr_2", input.tdx.quote.body.rtmr_2)
}

hardware := 2 if {
	input.tdx.tcb_status == "UpToDate"
	input.tdx.collateral_expiration_status == "0"
}

configuration := 2 if {
	input.tdx.td_attributes.debug == false
	input.tdx.td_attributes.migratable == false
	initdata
}

# A TPM of the node: firmware, kernel, command line and initrd are in PCRs 0 to 7 and 9. PCR 8 holds the initdata. The
# broker has checked that a CA of the operator vouches for the TPM; what it proves is integrity alone. PCR 0, the firmware
# itself, may be left to the node, which makes the TPM's words as well.
executables := 3 if {
	every n in ["01", "02", "03", "04", "05", "06", "07", "09"] {
		known(concat("", ["tpm_pcr", n]), input.tpm.tpm[concat("", ["pcr", n])])
	}
	tpm_firmware
}

tpm_firmware if known("tpm_pcr00", input.tpm.tpm.pcr00)

tpm_firmware if query_reference_value("tpm_pcr00_by_node") == true

hardware := 2 if input.tpm.key_certificate

configuration := 2 if {
	input.tpm
	initdata
}

# Evidence that proves nothing, which the broker takes only with --allow-insecure.
executables := 3 if known("launch_digest", input.sample.launch_digest)

hardware := 2 if known("svn", input.sample.svn)

configuration := 2 if {
	input.sample
	initdata
}
