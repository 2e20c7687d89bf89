"""Users, and the email that greets them."""

from uuid import UUID

from fastapi import APIRouter, BackgroundTasks, HTTPException
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError

from ..db import User
from ..tasks.emails import greet
from .deps import AppResources, Email, Line, Session

router = APIRouter(tags=["users"])


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
    background_tasks.add_task(greet, resources, user.id)
    return user
