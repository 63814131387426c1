# The broker's default resource policy: every part of the guest was found affirming.
package policy

import rego.v1

default allow := false

allow if {
	data.plugin == "resource"
	count(input.submods) > 0
	every part in input.submods {
		part["ear.status"] == "affirming"
	}
}
