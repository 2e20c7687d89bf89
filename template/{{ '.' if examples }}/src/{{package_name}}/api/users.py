"""Users, and the email that greets them."""

import logging
from uuid import UUID

from fastapi import APIRouter, BackgroundTasks, HTTPException
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError

from ..db import User
from ..resources import Resources
from ..tasks.emails import greet
from .deps import AppResources, Email, Line, Session

router = APIRouter(tags=["users"])
logger = logging.getLogger(__name__)


class UserRequest(BaseModel):
    """A user to add."""

    email: Email
    name: Line


class UserInfo(UserRequest):
    """A user."""

    id: UUID


@router.post("/users", status_code=201, response_model=UserInfo)
async def add_user(
    body: UserRequest, session: Session, resources: AppResources, background_tasks: BackgroundTasks
) -> User:
    """Add a user, and greet them by email: without a queue, since a greeting may be lost."""
    user = User(email=body.email, name=body.name)
    session.add(user)
    try:
        await session.commit()
    except IntegrityError as error:
        raise HTTPException(409, "There is a user with this email.") from error
    background_tasks.add_task(greet_quietly, resources, user.id)
    return user


async def greet_quietly(resources: Resources, user_id: UUID) -> None:
    """Greet a user; log an error, which would close the client's connection."""
    try:
        await greet(resources, user_id)
    except Exception:
        logger.exception("user %s was not greeted", user_id)
