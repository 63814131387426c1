// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/kbs/page"
	"github.com/coco-shim/coco/cmd/coco/internal/pods"
)

func pageCommand(c *connection) *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use: "page", Short: "Serve a page that shows what a broker has and has decided",
		Long: "Serves a page with the names of the secrets, the policies, the sets of reference values and the last 1000\n" +
			"attestations, with the reason of each refusal. It changes nothing, has no script, and holds no secret and no\n" +
			"token. It listens on the loopback interface or at a Unix socket only; every user of this host can read it.",
		Example: "  coco kbs page --cert tls.crt --token-file admin.token   # http://127.0.0.1:9471/",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, _, err := c.ask(cmd.Context(), "GET", "/admin/references", nil, nil, nil); err != nil {
				return err // wrong flags are told now, not to a browser
			}
			return pods.ServeLocal(cmd.Context(), address, cmd.ErrOrStderr(), page.Handler(c.url, c.list))
		},
	}
	cmd.Flags().StringVar(&address, "listen", "127.0.0.1:9471", "IP:PORT of the loopback interface, or unix:///PATH")
	return cmd
}
