// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package katarego

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/policy/katarego/pipe"
)

// Times for one evaluation. They allow for emulation, which is 10 to 30 times slower than the processor.
const (
	compileTime = 45 * time.Second
	askTime     = 20 * time.Second
)

// Judge is a policy as package pipe serves it: each evaluation has its own deadline.
type Judge struct{ *Policy }

// NewJudge compiles a policy.
func NewJudge(text string) (pipe.Judge, error) {
	ctx, cancel := context.WithTimeout(context.Background(), compileTime)
	defer cancel()
	p, err := Compile(ctx, text)
	if err != nil {
		return nil, err
	}
	return Judge{p}, nil
}

// Ask decides about a request.
func (j Judge) Ask(m proto.Message) (pipe.Verdict, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	d, err := j.Policy.Ask(ctx, m)
	v := pipe.Verdict{Allowed: d.Allowed && err == nil, Reason: d.Reason}
	if d.ops != nil {
		v.Commit = func() error {
			ctx, cancel := context.WithTimeout(context.Background(), askTime)
			defer cancel()
			return j.Commit(ctx, d)
		}
	}
	return v, err
}
