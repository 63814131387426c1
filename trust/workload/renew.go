// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/trust/wire"
)

// renew has the agent renew the container's files. The agent alone may write them.
func (a *API) renew(ctx context.Context, q question) (answer, error) {
	got, err := a.askAgent(ctx, q.of.Name)
	switch {
	case err != nil:
		return answer{}, fmt.Errorf("the agent does not answer: %w", err)
	case got.Error != "":
		return answer{}, errors.New(got.Error)
	}
	return asJSON(struct {
		Changed int `json:"changed"`
	}{got.Changed}, kindJSON)
}

// askAgent sends the name of a container on the way, with the end of a pipe for the answer.
func (a *API) askAgent(ctx context.Context, name string) (out wire.Renewed, err error) {
	from, to, err := os.Pipe()
	if err != nil {
		return out, err
	}
	defer from.Close()
	err = fdpass.Send(a.way, []byte(name), to)
	if err = errors.Join(err, to.Close()); err != nil {
		return out, err
	}
	stop := context.AfterFunc(ctx, func() { _ = from.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = wire.Read(from, &out)
	return out, err
}
