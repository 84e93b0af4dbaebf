// This file answers: which checks are made of every method of the server API,
// and as whom?
//
// They need a server of their own: its authorities are rotated, its log level is
// changed and all its agents are evicted.
package main

import (
	"context"
	"flag"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

func runAPISuite(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("api-suite", flag.ContinueOnError)
	readServer := serverFlags(flags)
	socket := flags.String("admin-socket", "", "the server's admin socket")
	configured := flags.String("configured-admin", "", "a SPIFFE ID that the server's configuration makes an administrator")
	popCert := flags.String("x509pop-cert", "", "PEM file with a node certificate")
	popKey := flags.String("x509pop-key", "", "PEM file with its key")
	popIntermediates := flags.String("x509pop-intermediates", "", "PEM file with its intermediate certificates")
	settle := flags.Duration("settle", 20*time.Second, "how long a change may take to reach a node")
	if err := flags.Parse(args); err != nil {
		return err
	}
	srv, err := readServer()
	if err != nil {
		return err
	}
	if err := required(flags, "admin-socket", "configured-admin", "x509pop-cert", "x509pop-key"); err != nil {
		return err
	}
	administrator, err := spiffeid.FromString(*configured)
	if err != nil {
		return err
	}
	s, err := newSuite(srv, *socket, *settle)
	if err != nil {
		return err
	}
	defer s.admin.conn.Close()
	if s.pop, err = loadX509pop(*popCert, *popKey, *popIntermediates); err != nil {
		return err
	}

	everybody := s.callers(ctx, administrator)
	s.matrixChecks(ctx, everybody)
	s.maskChecks(ctx)
	s.inputMaskChecks(ctx)
	s.pagingChecks(ctx)
	s.filterChecks(ctx)
	s.agentFilterChecks(ctx)
	s.batchChecks(ctx)
	s.revisionChecks(ctx)
	s.trustDomainChecks(ctx)
	s.loggerChecks(ctx)
	s.downstreamChecks(ctx, everybody[downstream])
	s.debugChecks(ctx)
	s.healthChecks(ctx)
	s.authorityChecks(ctx)
	return s.close(ctx)
}

// callers makes one caller of each kind. One that cannot be made is missing from
// what is returned, and a failed check.
func (s *suite) callers(ctx context.Context, administrator spiffeid.ID) map[kind]*client {
	everybody := map[kind]*client{local: s.admin}
	s.check(ctx, "callers/agent", func(c *check) {
		s.node = s.enter(c, nil)
		everybody[agent] = s.node.client
	})
	s.check(ctx, "callers/stranger", func(c *check) {
		conn, err := s.server.anonymous()
		c.ok(err, "dial")
		everybody[stranger] = newClient(conn)
	})
	// Whoever has an X509-SVID of its own, however it came by it.
	bearer := func(c *check, id spiffeid.ID) *client {
		key := mustKey(c)
		csr, err := newCSR(key, id.String())
		c.ok(err, "make certificate request")
		response, err := s.admin.svids.MintX509SVID(c.ctx, &svidv1.MintX509SVIDRequest{Csr: csr})
		c.ok(err, "mint")
		var svid *x509svid.SVID
		svid, err = s.server.accept(response.GetSvid(), key)
		c.ok(err, "judge the SVID")
		conn, err := s.server.as(svid)
		c.ok(err, "dial")
		return newClient(conn)
	}
	for _, t := range []struct {
		kind  kind
		entry *types.Entry
	}{
		{adminByEntry, &types.Entry{Admin: true}},
		{downstream, &types.Entry{Downstream: true}},
		{plain, &types.Entry{}},
	} {
		s.check(ctx, "callers/"+t.kind.String(), func(c *check) {
			needs(c, s.node)
			id := s.path("caller-" + t.kind.String())
			t.entry.SpiffeId, t.entry.ParentId, t.entry.Selectors = protoID(id), protoID(s.node.svid.ID), unixSelector(1)
			s.create(c, t.entry)
			everybody[t.kind] = bearer(c, id)
		})
	}
	s.check(ctx, "callers/"+adminByConfiguration.String(), func(c *check) {
		everybody[adminByConfiguration] = bearer(c, administrator)
	})
	return everybody
}
