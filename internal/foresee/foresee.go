// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package foresee is the question that the shim asks the program coco before a VM runs: would the pod's policy deny its
// sandbox, or one of its containers? The code that evaluates policies would make the shim 0.9 MB larger for the life of
// each pod, so a process of a moment has it. The question is JSON on the standard input. The answer on the standard
// output is empty or the denial.
package foresee

// Args are the arguments of coco.
var Args = []string{"policy", "foresee"}

// Limits of the question and of the answer, in bytes.
const (
	MaxQuestion = 32 << 20
	MaxAnswer   = 4 << 10
)

// Question is a policy with requests in the protocol's binary form.
type Question struct {
	Policy    string `json:"policy"`
	Sandbox   []byte `json:"sandbox"`
	Container []byte `json:"container,omitempty"` // none: only the sandbox is judged
}
