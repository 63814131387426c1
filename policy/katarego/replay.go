// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package katarego

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
)

// Replay decides about a line of the log of Kata's agent, in which a request counts as handled. It returns why the
// request is denied, or "". The log also has the objects that rules returned, which are passed over.
func (p *Policy) Replay(ctx context.Context, kind string, request json.RawMessage) (denial string, err error) {
	var input map[string]any
	dec := json.NewDecoder(bytes.NewReader(request))
	dec.UseNumber()
	if err := dec.Decode(&input); err != nil {
		return "", fmt.Errorf("%s: %w", kind, err)
	}
	if _, isResult := input["allowed"].(bool); isResult {
		return "", nil
	}
	d, err := p.AskAbout(ctx, kind, input)
	if err != nil {
		return "cannot be evaluated: " + err.Error(), nil //nolint:nilerr // it is a denial
	}
	if err := p.Commit(ctx, d); err != nil {
		return "", fmt.Errorf("%s: %w", kind, err)
	}
	return d.Reason, nil
}
