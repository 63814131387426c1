// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"encoding/json"
)

// InsecureSample makes CoCo's evidence of type "sample", which anyone can make: it proves nothing.
type InsecureSample struct{}

// TEE is "sample".
func (InsecureSample) TEE() string { return "sample" }

// Evidence returns the digest in Trustee's form.
func (InsecureSample) Evidence(_ context.Context, digest []byte) (json.RawMessage, error) {
	return json.Marshal(struct {
		SVN  string `json:"svn"`
		Data []byte `json:"report_data"` // base64 in JSON
	}{"1", digest})
}
