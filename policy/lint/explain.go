// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"errors"
	"regexp"
	"strings"

	"github.com/coco-shim/coco/policy/compare"
)

// Explanation is a denial, divided.
type Explanation struct {
	Code      compare.Code `json:"code"`
	Container string       `json:"container,omitempty"`
	Field     string       `json:"field"`
	Expected  string       `json:"expected"`
	Got       string       `json:"got"`
	Fix       string       `json:"fix,omitempty"`    // the smallest change of the policy that would allow it
	Meaning   string       `json:"meaning"`          // of the code
	Advice    string       `json:"advice,omitempty"` // what to look at first
}

// meanings are the sentences for codes, and what to do first.
var meanings = map[compare.Code][2]string{
	compare.NoPolicy: {
		"The guest must have a policy and has none.",
		"Make one with coco policy gen and give the manifest that it writes.",
	},
	compare.Method: {"No policy allows this call of the agent.", ""},
	compare.Capability: {
		"The call belongs to a capability that the policy leaves closed.",
		"Open it with coco policy gen --allow, if the host may have it.",
	},
	compare.Value: {
		"A field of the request differs from what the policy pins.",
		"Compare the policy with one that is made from the manifest as the cluster has it: " +
			"kubectl apply --dry-run=server -o yaml -f FILE | coco policy gen - | coco policy diff OLD -",
	},
	compare.ID: {
		"An id has a wrong form, is unknown to the guest, or was used before.",
		"No manifest leads to this: look at the node.",
	},
	compare.Order: {
		"The call does not fit what has happened before in this guest.",
		"Look at restartPolicy and at the order of init containers.",
	},
	compare.Content: {
		"The bytes of a file that the host brought differ from what the policy pins.",
		"Make the policy again, with the ConfigMaps and Secrets that the cluster has now.",
	},
}

var denied = regexp.MustCompile(`denied \[([a-z-]+)\] (\S.*?): expected (.*)`)

// Explain finds a denial in a text, such as an event of Kubernetes, and divides it.
func Explain(text string) (Explanation, error) {
	m := denied.FindStringSubmatch(strings.ReplaceAll(text, "\n", " "))
	if m == nil {
		return Explanation{}, errors.New("the text has no denial: denied [code] container/field: expected …, got …")
	}
	out := Explanation{Code: compare.Code(m[1]), Field: m[2]}
	words, ok := meanings[out.Code]
	if !ok {
		words[0] = "This code is unknown here: the guest is newer than this command."
	}
	out.Meaning, out.Advice = words[0], words[1]
	if c, field, ok := strings.Cut(out.Field, "/"); ok && !strings.ContainsAny(c, ` "[`) {
		out.Container, out.Field = c, field
	}
	rest := m[3]
	rest, out.Fix, _ = strings.Cut(rest, "; allow with: ")
	out.Expected, out.Got, _ = strings.Cut(rest, ", got ")
	return out, nil
}
